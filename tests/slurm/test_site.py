"""Settings of a site, and the limits of its cluster as sinfo prints them."""

import subprocess

import pytest

from ppma.config.errors import InputError
from ppma.slurm import site
from ppma.slurm.cluster import ClusterConfig

SINFO = """\
main*|node1|idle|gpu:h200:8(S:0-1)|64|7-00:00:00
main*|node2|down*|gpu:h200:8(S:0-1)|64|7-00:00:00
debug|node1|idle|gpu:h200:8|64|1:00:00
cpu|node3|mixed|(null)|16|infinite
"""


@pytest.fixture
def cluster(monkeypatch):
    def ask(*command):
        return SINFO if command[0] == "sinfo" else "\n".join(command[-1].split(","))

    monkeypatch.setattr(site, "_ask", ask)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"partition": "gpu"}, "--partition is gpu.*cpu, debug, main"),
        ({"nodes": 3}, "--nodes is 3.* 2"),
        ({"gpus_per_node": 16}, "--gpus-per-node is 16.* 8"),
        ({"partition": "cpu"}, "--gpus-per-node is 1.* 0"),
        ({"gpus_per_node": 8, "cpus_per_task": 9}, "--cpus-per-task is 9.* 8"),
        ({"partition": "debug"}, "--time is 1-00:00:00.* 0-01:00:00"),
        ({"nodelist": "node1,node2"}, r"--nodelist: node2 is down\*.* node1"),
        ({"nodelist": "node9"}, "--nodelist: node9.* node1"),
    ],
)
def test_impossible_jobs_are_refused_with_what_is_allowed(fields, words, cluster):
    with pytest.raises(InputError, match=words):
        site.check(ClusterConfig(**fields))


@pytest.mark.parametrize(
    "fields", [{}, {"partition": "cpu", "gpus_per_node": 0, "time": "99-0"}, {"partition": "main,debug"}]
)
def test_possible_jobs_are_not(fields, cluster):
    site.check(ClusterConfig(**fields))


def test_a_controller_that_does_not_answer_is_reported(monkeypatch):
    def hangs(command, **_):
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(site.subprocess, "run", hangs)
    with pytest.raises(InputError, match="sinfo"):
        site.check(ClusterConfig())


def test_a_job_that_waits_for_nodes_logs_a_warning(cluster, caplog):
    site.check(ClusterConfig(nodes=2))
    assert "1 usable nodes" in caplog.text


@pytest.mark.parametrize(
    ("complaint", "field", "printed", "hint"),
    [
        ("Invalid feature specification", "%f", "a100,ib\nh200,ib\n", "; --constraint takes a100, h200, ib"),
        ("Memory specification can not be satisfied", "%m", "65536\n65536\n", "; MB of memory that nodes have: 65536"),
        ("Invalid generic resource (gres) specification", "%G", "gpu:h200:8\n", "; --gres takes gpu:h200:8"),
        ("Invalid node name specified", "%N", "node2\nnode1\n", "; nodes are node1, node2"),
        ("Job dependency problem", "", "", "refuses: Job dependency problem"),
    ],
)
def test_refusals_name_what_the_nodes_have(complaint, field, printed, hint, monkeypatch):
    monkeypatch.setattr(site, "_ask", lambda *command: printed if command[-1] == field else pytest.fail(str(command)))
    assert site.explain_refusal(f"sbatch: error: {complaint}").endswith(hint)


def test_refusals_name_what_is_allowed(monkeypatch):
    class Done:
        stdout = "lab|normal,low\nteam|normal\n"

    monkeypatch.setattr(site.subprocess, "run", lambda *_, **__: Done)
    text = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    assert site.explain_refusal(text).endswith("--account takes lab, team; --qos takes low, normal")
    assert site.explain_refusal("sbatch: error: a\nsbatch: error: b\n") == "sbatch refuses: a; b"


def test_a_site_sets_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert site.with_site(ClusterConfig(), []) == ClusterConfig()
    (tmp_path / "ppma").mkdir()
    usual = tmp_path / "ppma" / "site.toml"
    usual.write_text('partition = "gpu"\ngpus_per_node = 8\nsetup = ["module load cuda"]\n[slurm]\nreservation = "x"\n')
    given = site.with_site(ClusterConfig(), [])
    assert (given.partition, given.gpus_per_node, given.setup) == ("gpu", 8, ("module load cuda",))
    assert given.slurm == ("reservation=x",)
    (tmp_path / "other.toml").write_text('partition = "other"\n')
    assert site.with_site(ClusterConfig(), ["--site", str(tmp_path / "other.toml")]).partition == "other"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("partitoin = 'x'", "partitoin"),
        ("nodes = '2'", "nodes"),
        ("=", "--site"),
    ],
)
def test_a_wrong_site_file_is_refused(text, word, tmp_path):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(InputError, match=word):
        site.with_site(ClusterConfig(), [f"--site={tmp_path / 'site.toml'}"])
