"""Let one call of the host fail, wherever in the run it happens, and see what the guest is told.

Run:    python inject_fault.py DIR
Prints: [Errno 5] Input/output error
"""

import sys

from vmsim.machine import Machine, Seams
from vmsim.wrappers.faults import Fault, FaultPlan, FaultyHostFs

plan = FaultPlan([Fault("host", "getdents", 1, "fail")])
with Machine(sys.argv[1], seams=Seams(host_fs=lambda inner: FaultyHostFs(inner, plan))) as vm:
    try:
        vm.mount().listdir("/")
    except OSError as error:
        print(error)
assert plan.injected, "a run in which nothing was injected tests nothing"
