"""Cut the migration channel at each step in turn: the source goes on, whatever it was doing.

Run:    python lost_connection.py DIR
Prints: the source went on after each of ... cuts
"""

import sys

from vmsim.errors import VmsimError
from vmsim.machine import Machine, Seams
from vmsim.wrappers.faults import Fault, FaultPlan, FaultyChannel


def wrapped(plan):
    return Seams(channel=lambda inner, side: FaultyChannel(inner, plan) if side == "source" else inner)


whole = FaultPlan()
with Machine(sys.argv[1], memory="8M", seams=wrapped(whole)) as vm:
    vm.migrate().close()

cuts = 0
for step in whole.steps[:-3]:  # the last three are the go and what follows: then the guest is there
    plan = FaultPlan([Fault.at(step, "cut")])
    with Machine(sys.argv[1], memory="8M", seams=wrapped(plan)) as vm:
        try:
            vm.migrate().close()
        except VmsimError:
            vm.mount().listdir("/")
            cuts += 1
print(f"the source went on after each of {cuts} cuts")
