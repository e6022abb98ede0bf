"""The parts of the sandbox that can be looked at from outside; attacks on the whole are in tests/integration."""

import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import uuid

import pytest

from dlplatform.sandbox import cgroups, kernel, plan, usage
from dlplatform.sandbox.limits import Limits
from dlplatform.sandbox.plan import Plan
from dlplatform.sandbox.process import Sandbox, Unconfinable, user_for, working_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces")


def verdict(program, number, architecture=None, argument=0):
    """What the kernel would answer: the filter, interpreted."""
    known = architecture or kernel._NUMBERS["x86_64"][0]
    data = struct.pack("<IIQQ", number, known, 0, argument)
    at = value = 0
    while True:
        code, yes, no, operand = program[at]
        if code == kernel.RETURN:
            return operand
        if code == kernel.LOAD:
            value = struct.unpack_from("<I", data, operand)[0]
            at += 1
            continue
        holds = {
            kernel.JUMP_IF_EQUAL: value == operand, kernel.JUMP_IF_AT_LEAST: value >= operand,
            kernel.JUMP_IF_ANY: bool(value & operand),
        }[code]  # fmt: skip
        at += 1 + (yes if holds else no)


@pytest.fixture
def filters(monkeypatch):
    """``filters(install)``: the program that would be installed on x86-64."""
    monkeypatch.setattr(kernel.platform, "machine", lambda: "x86_64")
    made = []
    monkeypatch.setattr(
        kernel, "_install", lambda rules: made.append(kernel._assembled(kernel._NUMBERS["x86_64"][0], rules))
    )

    def program(install):
        install()
        return made[-1]

    return program


def numbers(*names):
    return [kernel._NUMBERS["x86_64"][1][kernel._NAMES.index(name)] for name in names]


def test_the_filter_for_strangers_denies_ways_out_and_lets_the_rest_pass(filters):
    program = filters(kernel.deny_escapes)
    for number in numbers("mount", "unshare", "setns", "ptrace", "bpf", "keyctl", "memfd_create", "shmget"):
        assert verdict(program, number) == kernel.DENY
    opened, forked, called = numbers("socket", "clone", "clone3")
    assert verdict(program, opened, argument=socket.AF_UNIX) == kernel.ALLOW
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, 40):
        assert verdict(program, opened, argument=family) == kernel.DENY
    assert verdict(program, forked, argument=17) == kernel.ALLOW
    assert verdict(program, forked, argument=17 | kernel.CLONE_NEWUSER) == kernel.DENY
    assert verdict(program, called) == kernel.UNKNOWN_CALL
    assert all(verdict(program, number) == kernel.ALLOW for number in (0, 1, 2, 9, 59, 231))


@pytest.mark.parametrize("install", [kernel.deny_escapes, kernel.deny_reading])
def test_calls_under_other_numbers_are_denied(filters, install):
    program = filters(install)
    assert verdict(program, 0, architecture=0x40000003) == kernel.DENY
    assert verdict(program, kernel.X32_CALLS | 1) == kernel.DENY
    assert verdict(program, 41, argument=socket.AF_INET) == kernel.DENY


def test_every_machine_has_a_number_for_every_call():
    for _, known in kernel._NUMBERS.values():
        assert len(known) == len(kernel._NAMES)


def test_runs_have_users_of_their_own_where_we_can_become_others():
    first, second = user_for(uuid.uuid4()), user_for(uuid.uuid4())
    if os.geteuid() == 0:
        assert first != second and min(first, second) > 10_000
    else:
        assert first == second == os.geteuid()


def test_a_plan_survives_being_written(tmp_path):
    made = Plan(["a"], "w", "s", 5, readable={"x": "y"}, limits=Limits(memory=7))
    made.write(tmp_path / "plan")
    assert Plan.read(tmp_path / "plan") == made


def test_of_the_house_only_the_engine_is_shown():
    shown = [path for path in plan.libraries() if path.startswith(str(plan.PROJECT_ROOT))]
    own = [path for path in shown if not path.startswith(sys.prefix)]
    assert sorted(own) == [str(plan.PROJECT_ROOT / "dlplatform" / name) for name in ("__init__.py", "engine")]


def test_places_that_an_attempt_turned_into_something_else_are_made_anew(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    job = tmp_path / "job"
    (job / "data").mkdir(parents=True)
    (job / "spec.json").write_text("{}")
    readable = {"data": job / "data", "spec.json": job / "spec.json"}
    work = working_folder(job, os.geteuid(), readable)
    (work / "data").rmdir()
    (work / "data").symlink_to(outside)
    (work / "spec.json").unlink()
    (work / "spec.json").mkdir()
    (work / "spec.json" / "file").touch()
    working_folder(job, os.geteuid(), readable)
    assert not (work / "data").is_symlink() and (work / "data").is_dir()
    assert (work / "spec.json").is_file() and (outside / "kept").read_text() == "kept"
    os.mkfifo(work / "pipe")
    working_folder(job, os.geteuid(), {"pipe": job / "spec.json"})
    assert (work / "pipe").is_file()


def test_usage_counts_blocks_and_entries_and_follows_no_link(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(10_000))
    (tmp_path / "loop").symlink_to(tmp_path)
    size, count = usage.files_in(str(tmp_path), 100)
    assert size >= 10_000 and count == 3
    assert usage.files_in(str(tmp_path), 1)[1] >= 2
    assert usage.files_in(str(tmp_path / "nowhere"), 1) == (0, 0)
    memory, threads = usage.processes_of(os.getpid())
    assert memory > 1 << 20 and threads >= 1
    assert usage.processes_of(2**22 + 1) == (0, 0)


def test_where_no_group_can_be_made_there_is_none_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "none")
    group = cgroups.make("x", 1, 1)
    assert group == cgroups.Group() and not group.starved() and not group.crowded()
    assert group.with_member(os.getpid()) == group
    assert cgroups.Group(memory=tmp_path / "gone").with_member(1) == cgroups.Group()
    group.remove()


@pytest.mark.parametrize("together", [True, False])
def test_groups_of_both_layouts_get_their_ceilings(tmp_path, monkeypatch, together):
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "_own", lambda kind: tmp_path / kind)
    parents = [tmp_path, tmp_path] if together else [tmp_path / "memory", tmp_path / "pids"]
    if together:
        (tmp_path / "cgroup.controllers").touch()
    names = ["memory.max" if together else "memory.limit_in_bytes", "pids.max", "cgroup.procs"]
    for parent in parents:  # the kernel makes these files with the folder
        folder = parent / "dlp-sandbox-x"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).touch()
    group = cgroups.make("x", 4096, 7)
    assert (group.memory / names[0]).read_text() == "4096" and (group.processes / "pids.max").read_text() == "7"
    (group.memory / ("memory.events" if together else "memory.oom_control")).write_text("low 0\noom_kill 2\n")
    (group.processes / "pids.events").write_text("max 0\n")
    assert group.starved() and not group.crowded()


def test_another_system_is_refused_with_its_name(tmp_path, monkeypatch):
    sandbox = Sandbox(Plan(["a"], "w", str(tmp_path), 1))
    assert sandbox.poll() is None and sandbox.fault() == ""
    sandbox.kill()
    monkeypatch.setattr("dlplatform.sandbox.process.sys.platform", "darwin")
    with pytest.raises(Unconfinable, match="darwin"):
        sandbox.start(output=1)
    monkeypatch.undo()
    monkeypatch.setattr(kernel.platform, "machine", lambda: "riscv64")
    with pytest.raises(Unconfinable, match="system calls"):
        sandbox.start(output=1)
    assert not kernel.deny_escapes()


def test_what_the_kernel_refuses_is_an_error_with_its_number():
    with pytest.raises(OSError) as refused:
        kernel.mount("none", "/nowhere/at/all", "tmpfs", 0)
    assert refused.value.errno in (errno.ENOENT, errno.EPERM)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs a right to give up")
def test_where_no_namespace_can_be_made_nothing_is_run_and_that_is_said(tmp_path):
    state, work = tmp_path / "state", tmp_path / "work"
    state.mkdir()
    work.mkdir()
    ran = work / "ran"
    Plan(
        [sys.executable, "-c", f"open({str(ran)!r}, 'w')"], str(work), str(state), os.geteuid(), parent=os.getpid()
    ).write(state / "plan.json")
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-m", "dlplatform.sandbox", str(state / "plan.json")],
        env={"PYTHONPATH": str(plan.PROJECT_ROOT)}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 125 and b"unshare" in done.stdout, done
    assert json.loads((state / "verdict.json").read_text()) == {"fault": "sandbox_unavailable"}
    assert not ran.exists()
