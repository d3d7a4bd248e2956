"""Each fault that must be survived has a test that does it, and the page says which."""

import socket

import faults
import pytest
from conftest import run
from runs import train_command


def test_every_fault_has_a_test_and_every_mark_a_fault():
    known = {number for rows in faults.faults().values() for number in rows}
    assert known == set(range(1, 48))
    assert faults.tests_by_fault().keys() == known


def test_the_page_is_that_of_the_marks():
    assert faults.page() == faults.PAGE.read_text(), "write it anew: python tests/faults.py"


@pytest.mark.fault(44)
def test_a_run_of_two_processes_minds_no_port_and_no_master_of_others(shards_dir, tmp_path):
    """As a container or a scheduler leaves the environment of everything that it starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        master = {"MASTER_ADDR": "203.0.113.1", "MASTER_PORT": port, "RANK": "3", "WORLD_SIZE": "8"}
        command = train_command(shards_dir, tmp_path / "run", "--gpus", "2", "--steps", "1")
        result = run(*command, **master)
    assert result.returncode == 0, result.stderr


@pytest.mark.fault(44)
def test_a_network_interface_that_is_not_there_is_one_line(shards_dir, tmp_path):
    command = train_command(shards_dir, tmp_path / "run", "--gpus", "2", "--steps", "1")
    result = run(*command, GLOO_SOCKET_IFNAME="none0")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "none0" in result.stderr.strip().splitlines()[-1]
