"""Pages of training."""

from django.urls import path

from .lineage.relations import KINDS
from .views import (
    code,
    compare,
    experiments,
    finetune,
    home,
    lineage,
    new_run,
    new_sweep,
    preflights,
    replays,
    run,
    runs,
    sweeps,
)

urlpatterns = [
    path("", home.home, name="home"),
    path("runs/", runs.run_list, name="runs"),
    path("runs/new", new_run.run_new, name="run-new"),
    path("runs/compare", compare.compare, name="compare"),
    path("runs/<uuid:run>/", run.run_page, name="run"),
    path("runs/<uuid:run>/log.txt", run.run_log, name="run-log"),
    path("runs/<uuid:run>/cancel", run.run_cancel, name="run-cancel"),
    path("runs/<uuid:run>/pause", run.run_pause, name="run-pause"),
    path("runs/<uuid:run>/resume", run.run_resume, name="run-resume"),
    path("runs/<uuid:run>/archive", run.run_archive, name="run-archive"),
    path("runs/<uuid:run>/restore", run.run_restore, name="run-restore"),
    path("runs/<uuid:run>/rename", run.run_rename, name="run-rename"),
    path("runs/<uuid:run>/relaunch", run.run_relaunch, name="run-relaunch"),
    path("code/new", code.code_new, name="code-new"),
    path("code/<uuid:code>/", code.code_page, name="code"),
    path("preflights", preflights.preflight_new, name="preflight-new"),
    path("preflights/<uuid:preflight>", preflights.preflight_part, name="preflight"),
    path("model-versions/<uuid:version>/replays", replays.version_replays, name="version-replays"),
    path("model-versions/<uuid:version>/replay", replays.version_replay, name="version-replay"),
    path("model-versions/<uuid:version>/finetune", finetune.finetune_new, name="finetune"),
    path("model-versions/<uuid:version>/finetune-preflight", preflights.finetune_preflight, name="finetune-preflight"),
    path("sweeps/", sweeps.sweep_list, name="sweeps"),
    path("sweeps/new", new_sweep.sweep_new, name="sweep-new"),
    path("sweeps/<uuid:sweep>/", sweeps.sweep_page, name="sweep"),
    path("sweeps/<uuid:sweep>/cancel", sweeps.sweep_cancel, name="sweep-cancel"),
    path("sweeps/<uuid:sweep>/pause", sweeps.sweep_pause, name="sweep-pause"),
    path("sweeps/<uuid:sweep>/resume", sweeps.sweep_resume, name="sweep-resume"),
    path("sweeps/<uuid:sweep>/rerun-failed", sweeps.sweep_rerun, name="sweep-rerun"),
    path("sweeps/<uuid:sweep>/promote", sweeps.sweep_promote, name="sweep-promote"),
    path("experiments/", experiments.experiment_list, name="experiments"),
    *(
        path(f"lineage/{kind}s/<uuid:identifier>/", lineage.lineage_page, {"kind": kind}, name=f"{kind}-lineage")
        for kind in KINDS
    ),
]
