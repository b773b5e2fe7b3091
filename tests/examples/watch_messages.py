"""Print the vhost messages that starting a device takes.

Run:    python watch_messages.py DIR
Prints: GET_FEATURES ... SET_OWNER ... ADD_MEM_REG ... SET_VRING_KICK ...
"""

import sys

from vmsim.machine import Machine, Seams
from vmsim.trace import Tracer
from vmsim.wrappers.traced import TracedTransport

tracer = Tracer()
tracer.subscribe("vhost.request", lambda entry: print(entry.event.name))
source = tracer.source("vm")
with Machine(sys.argv[1], seams=Seams(transport=lambda inner: TracedTransport(inner, source))) as vm:
    vm.mount().stat("/")
