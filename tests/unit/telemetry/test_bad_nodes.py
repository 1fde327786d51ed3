"""Nodes that attempts found unfit."""

from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.bad_nodes import BAD_NODE, nodes_found_bad


def test_each_node_once_in_the_order_of_the_faults():
    def attempt(*nodes):
        faults = [{"what": BAD_NODE, "node": node} for node in nodes]
        return Attempt(1, faults=[{"what": "clock", "node": "n9"}, {"what": BAD_NODE}, *faults])

    assert nodes_found_bad([attempt("n2", "n1"), attempt(), attempt("n1", "n3")]) == [
        "n2",
        "n1",
        "n3",
    ]
