"""Settings of a site, and the limits of its cluster as sinfo prints them."""

import subprocess

import pytest

from ppma.config.errors import InputError
from ppma.slurm import site
from ppma.slurm.cluster import ClusterConfig, allocate
from ppma.slurm.status import active_jobs

SINFO = """\
main*|node1|idle|gpu:h200:8(S:0-1)|64|7-00:00:00|h200,ib
main*|node2|down*|gpu:h200:8(S:0-1)|64|7-00:00:00|h200,ib
debug|node1|idle|gpu:h200:8|64|1:00:00|h200,ib
cpu|node3|mixed|(null)|16|infinite|(null)
"""


@pytest.fixture
def cluster(monkeypatch):
    def ask(*command):
        return SINFO if command[0] == "sinfo" else "\n".join(command[-1].split(","))

    monkeypatch.setattr(site, "_ask", ask)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:8(S:0-1)", 8),
        ("gpu:h100:8(S:0-1)", 8),
        ("gpu:a100:4(S:0,2),nvme:2", 4),
        ("nvme:1,gpu:h200:4(S:0),gpu:a100:2(S:1)", 6),
        ("gpu:1g.10gb:7(S:0)", 7),
        ("gpu:tesla:no_consume:2", 2),
        ("shard:h100:32,vgpu:16", 0),
    ],
)
def test_gpus_are_read_as_sinfo_prints_them(gres, gpus):
    assert site._node(f"main|node1|mixed-|{gres}|64|infinite|a").gpus == gpus


MIXED = """\
main*|big1|idle|gpu:h200:8(S:0-1)|192|infinite|h200,ib
main*|big2|mixed|gpu:h200:8(S:0-1)|192|infinite|h200,ib
main*|old1|allocated|gpu:a100:4(S:0-1)|32|infinite|a100
main*|old2|idle~|gpu:a100:4(S:0-1)|32|infinite|a100
long|big1|idle|gpu:h200:8(S:0-1)|192|infinite|h200,ib
cpu|host1|idle|(null)|8|infinite|(null)
"""


@pytest.mark.parametrize(
    ("fields", "gpus", "cores"),
    [
        ({}, 8, 24),
        ({"nodes": 2}, 8, 24),
        ({"nodes": 3}, 4, 8),  # what three nodes have, with the cores of any of them
        ({"nodes": 9}, 4, 8),  # `check` refuses it
        ({"partition": "long,main"}, 8, 24),
        ({"constraint": "a100"}, 4, 8),
        ({"constraint": "h200&ib"}, 8, 24),
        ({"nodelist": "old1"}, 4, 8),
        ({"exclude": "big1,big2"}, 4, 8),
        ({"gpus_per_node": 1}, 1, 8),
        ({"gpus_per_node": 8, "tasks_per_node": 4}, 8, 48),
        ({"gpus_per_node": 8, "cpus_per_task": 5}, 8, 5),
        ({"gpus_per_node": 0}, 0, 12),
        ({"partition": "cpu", "gpus_per_node": 0}, 0, 8),
        ({"gpus_per_task": 1, "tasks_per_node": 8}, 8, 24),
    ],
)
def test_a_job_takes_what_the_nodes_have(fields, gpus, cores, cluster, monkeypatch):
    monkeypatch.setattr("tests.slurm.test_site.SINFO", MIXED)
    fitted = site.fit(ClusterConfig(**fields))
    assert (allocate(fitted).gpus, fitted.cpus) == (gpus, cores)


@pytest.mark.parametrize("fields", [{"partition": "cpu"}, {"constraint": "a100|h200"}])
def test_sizes_that_the_nodes_do_not_tell_are_refused(fields, cluster):
    with pytest.raises(InputError, match="--gpus-per-node"):
        site.fit(ClusterConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"partition": "gpu"}, "--partition is gpu.*cpu, debug, main"),
        ({"nodes": 3}, "--nodes is 3.* 2"),
        ({"gpus_per_node": 16}, "--gpus-per-node is 16.* 8"),
        ({"partition": "cpu", "gpus_per_node": 1}, "--gpus-per-node is 1.* 0"),
        ({"gpus_per_node": 8, "cpus_per_task": 9}, "--cpus-per-task is 9.* 8"),
        ({"partition": "debug"}, "--time is 1-00:00:00.* 0-01:00:00"),
        ({"nodelist": "node1,node2"}, r"--nodelist: node2 is down\*.* node1"),
        ({"nodelist": "node9"}, "--nodelist: node9.* node1"),
    ],
)
def test_impossible_jobs_are_refused_with_what_is_allowed(fields, words, cluster):
    with pytest.raises(InputError, match=words):
        site.check(ClusterConfig(**fields))


def test_possible_jobs_are_not(cluster):
    for fields in ({}, {"partition": "cpu", "gpus_per_node": 0, "time": "99-0"}, {"partition": "main,debug"}):
        site.check(ClusterConfig(**fields))


def test_a_controller_that_does_not_answer_is_reported(monkeypatch, tmp_path):
    def hangs(command, **_):
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr("ppma.slurm.cluster.subprocess.run", hangs)
    with pytest.raises(site.NoClusterError, match="sinfo"):
        site.check(ClusterConfig())
    (tmp_path / "launch.json").write_text('[{"jobs": ["5"]}]')
    with pytest.raises(InputError, match="squeue"):  # or a job in the queue would be submitted again
        active_jobs(tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(site.NoClusterError, match="sinfo"):
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

    monkeypatch.setattr(site, "ask", lambda *_: Done)
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
        ("gpus_per_node = 'all'", "gpus_per_node"),
        ("cpus_per_task = true", "cpus_per_task"),
        ("=", "--site"),
    ],
)
def test_a_wrong_site_file_is_refused(text, word, tmp_path):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(InputError, match=word):
        site.with_site(ClusterConfig(), [f"--site={tmp_path / 'site.toml'}"])
