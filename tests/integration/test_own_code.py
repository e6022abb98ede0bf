"""Runs with code of users' own: they train, make versions and answer; what cannot work is refused before it is queued."""

import sys

import pytest
from django.conf import settings as configured
from django.core.exceptions import PermissionDenied, ValidationError

from dlplatform.accounts.models import Membership
from registry.services import object_store
from registry.serving import client
from registry.serving.cache import loaded
from tests.fixtures import own_code
from tests.integration.coding import ended, log_of, survivors, under_way
from training import code, services
from training.job_directories import job_directory
from training.models import MetricPoint, Run

FORWARD_THAT_LEAVES = """def forward(self, inputs):
        import os
        if len(inputs["numbers"]) == 1:
            os._exit(3)"""

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces"),
]


def test_an_architecture_trains_in_the_ordinary_loop_and_comes_out_the_same_again(queue_code):
    files = {"model.py": own_code.ARCHITECTURE}
    wanted = {"epochs": 4, "importance": True, "seed": 5}
    first, second = (ended(queue_code(files, {"width": 8}, **wanted)) for _ in range(2))
    assert first.state == "succeeded", (first.error, log_of(first))
    version = first.output_version
    assert version.tree["code/model.py"] == first.code.tree["model.py"]
    assert version.lineage["code"]["digest"] == first.code.digest
    assert version.signature["output"]["classes"] == ["a", "b", "c"]
    assert first.evaluation["metrics"]["accuracy"] > 0.5 and first.metrics["accuracy"] > 0.5
    assert version.tree["model.safetensors"] == second.output_version.tree["model.safetensors"]
    assert b"architecture of its own" in object_store(version.model.organization_id).read(
        version.tree["README.md"]["sha256"]
    )
    assert not job_directory(first).exists() and survivors(first) == []


def test_such_a_model_answers_from_a_sandbox_and_nowhere_else(queue_code):
    from dlplatform.engine.errors import PackageError, PredictionInputError
    from dlplatform.engine.predict import Predictor
    from registry.serving.cache import package_directory

    version = ended(queue_code({"model.py": own_code.ARCHITECTURE}, epochs=4)).output_version
    with pytest.raises(PackageError, match="only in a sandbox"):
        Predictor(package_directory(version))
    predictor = loaded(version)
    try:
        answers = predictor.predict([{"length": 5.0, "width": 3.0, "colour": "red"}] * 2)
        assert len(answers) == 2 and set(answers[0]["probabilities"]) == {"a", "b", "c"}
        with pytest.raises(PredictionInputError) as refused:
            predictor.predict([{"length": "long", "width": 1.0, "colour": "red"}])
        assert refused.value.column == "length"
        assert predictor.alive
    finally:
        predictor.close()
    version.tree["code/model.py"]["sha256"] = "0" * 64
    with pytest.raises(PackageError):
        loaded(version)
    version.lineage.pop("code")
    with pytest.raises(PackageError):
        loaded(version)


def test_the_inference_process_answers_starts_a_dead_sandbox_again_and_survives_bad_code(queue_code, inference):
    row = {"length": 5.0, "width": 3.0, "colour": "red"}
    version = ended(queue_code({"model.py": own_code.ARCHITECTURE}, epochs=2)).output_version
    bad = own_code.ARCHITECTURE.replace("def forward(self, inputs):", FORWARD_THAT_LEAVES)
    worse = ended(queue_code({"model.py": bad}, epochs=2)).output_version
    for _ in range(2):
        (told,) = client.predict(version.pk, [row])
        assert told["label"] in "abc"
        inference.server.models.ready(version.pk)._sandbox.kill()
    with pytest.raises(client.Unusable, match="Its code ended"):
        client.predict(worse.pk, [row])
    assert len(client.predict(version.pk, [row])) == 1
    inference.server.models.close()
    assert not list((configured.CACHE_PATH / "sandboxes").iterdir())


def test_a_script_makes_a_version_with_its_metrics_log_and_lineage(queue_code):
    run = ended(queue_code({"main.py": own_code.SCRIPT, "requirements.txt": "torch>=2\nnumpy  # any"}, {"steps": 12}))
    assert run.state == "succeeded", (run.error, log_of(run))
    version = run.output_version
    assert {"model.safetensors", "metrics.json", "README.md", "code/main.py"} <= set(version.tree)
    assert version.lineage["code"]["entry"] == "main.py" and version.lineage["dataset"]["name"] == "flowers"
    assert version.lineage["tensors"] == 2
    assert run.metrics.keys() == {"loss"} and "ready" in log_of(run)
    steps = MetricPoint.objects.filter(series__run=run, series__key="loss").values_list("step", flat=True)
    assert list(steps.order_by("step")) == list(range(1, 13))
    assert MetricPoint.objects.filter(series__run=run, series__key="accuracy").count() == 12


def test_a_killed_script_goes_on_from_its_checkpoint_and_reports_every_step_once(queue_code, meanwhile):
    quiet = ended(queue_code(own_code.SCRIPT, {"steps": 40}))
    run = queue_code(own_code.SCRIPT, {"steps": 40, "hold": 13})
    meanwhile(under_way(run, 12), lambda: [one.kill() for one in survivors(run)])
    ended(run)
    assert run.state == "queued", run.error
    Run.objects.filter(pk=run.pk).update(not_before=None)
    ended(run)
    assert run.state == "succeeded", (run.error, log_of(run))
    assert "goes on after step" in log_of(run)
    weights = [one.output_version.tree["model.safetensors"]["sha256"] for one in (run, quiet)]
    assert weights[0] == weights[1]
    points = [
        list(MetricPoint.objects.filter(series__run=one).order_by("series__key", "step").values_list("step", "value"))
        for one in (run, quiet)
    ]
    assert points[0] == points[1]


def test_a_script_that_listens_is_paused_after_a_checkpoint_and_continued(queue_code, coder, meanwhile):
    run = queue_code(own_code.SCRIPT, {"steps": 60, "hold": 4})
    meanwhile(under_way(run, 3), lambda: services.pause_run(actor=coder, run=Run.objects.get(pk=run.pk)))
    assert ended(run).state == "paused", run.error
    services.resume_run(actor=coder, run=run)
    assert ended(run).state == "succeeded", (run.error, log_of(run))
    assert "goes on after step" in log_of(run)


def test_no_role_implies_the_permission_and_it_can_be_taken_back(queue_code, coder, admin_user, organization, flowers):
    admin_user.is_superuser = True
    admin_user.save()
    with pytest.raises(PermissionDenied, match="permission of its own"):
        code.add_code(actor=admin_user, organization=organization, filename="main.py", content=b"x = 1")
    run = queue_code("print(1)")
    Membership.objects.filter(user=coder).update(may_run_code=False)
    assert ended(run).error["code"] == "code_not_permitted"
    for act in (
        lambda: services.resume_run(actor=coder, run=run),
        lambda: services.clone_run(actor=coder, run=run),
        lambda: services.create_run(
            actor=coder, dataset_version=flowers, task="classification", target="kind", code=run.code
        ),
    ):
        with pytest.raises(PermissionDenied, match="permission of its own"):
            act()


def test_a_machine_that_cannot_confine_runs_nothing(queue_code, monkeypatch):
    monkeypatch.setattr("dlplatform.sandbox.process.sys.platform", "darwin")
    run = ended(queue_code("open('/tmp/ran', 'w')"))
    assert run.error["code"] == "sandbox_unavailable" and "Linux" in run.error["sentence"] + run.error["next_step"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no-such-library>=1", "not installed"),
        ("torch>=99", "is wanted and"),
        ("-r other.txt", "no plain requirement"),
        ("thing @ https://example.com/thing.whl", "nothing is fetched"),
    ],
)
def test_requirements_that_are_not_met_are_named_before_queueing(queue_code, line, told):
    with pytest.raises(ValidationError) as refused:
        queue_code({"main.py": "x = 1", "requirements.txt": line})
    assert told in str(refused.value.message_dict["code"]) and Run.objects.count() == 0


def test_requirements_that_do_not_apply_here_are_passed_over(queue_code):
    assert queue_code({"main.py": "x = 1", "requirements.txt": 'nothing; sys_platform == "win32"\n\n# why'}).pk


@pytest.mark.parametrize(
    ("files", "entry", "config", "field"),
    [
        ({"main.py": "", "model.py": ""}, "", {}, "entry"),
        ({"other.py": ""}, "", {}, "entry"),
        ({"main.py": ""}, "gone.py", {}, "entry"),
        ({"main.py": ""}, "", {"architecture": "mlp"}, "config.architecture"),
        ({"main.py": ""}, "", {"devices": 2}, "config.devices"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(queue_code, files, entry, config, field):
    with pytest.raises(ValidationError) as refused:
        queue_code(files, entry=entry, **config)
    assert field in refused.value.message_dict


def test_the_architecture_code_needs_code(flowers, coder):
    with pytest.raises(ValidationError) as refused:
        services.create_run(
            actor=coder, dataset_version=flowers, task="classification", target="kind", config={"architecture": "code"}
        )
    assert "config.architecture" in refused.value.message_dict


@pytest.mark.parametrize(
    "source",
    [
        "def build(schema): return 3",
        "def build(schema): raise KeyError('x')",
        "x = 1",
        "import torch\nclass N(torch.nn.Module):\n    def forward(self, i): return i['numbers']\ndef build(schema): return N()",
        "import torch\ndef build(schema): return torch.nn.Linear(1, 1)",
        "syntax error",
    ],
)
def test_a_wrong_architecture_fails_with_its_reason(queue_code, source):
    run = ended(queue_code({"model.py": source}, epochs=1))
    assert run.state == "failed" and run.error["code"] in ("code_error", "code_missing"), run.error
