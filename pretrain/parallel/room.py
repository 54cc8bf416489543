"""Memory of the ranks of this world, for plans that all of them make alike."""

import socket
from collections import Counter

from pretrain.config.run import RunConfig
from pretrain.device.hardware import device_memory
from pretrain.parallel.groups import Groups, gather_lists
from pretrain.plan.machine import USABLE
from pretrain.plan.policy import Room, given_room, share_of_machine


def room_of_ranks(config: RunConfig, groups: Groups) -> Room:
    """What the rank with the least can plan with: what the configuration says, or of its GPU, or its share of a machine
    without one. Collective."""
    if (given := given_room(config)) is not None:
        return given._replace(has_host=groups.device.type == "cuda")
    memory, where = device_memory(groups.device)
    hosts = Counter(gather_lists([socket.gethostname()]))
    own = share_of_machine(memory, hosts[socket.gethostname()])
    if groups.device.type == "cuda" and memory is not None:
        own = Room(USABLE * memory, where)
    rooms = gather_lists([f"{own.bytes!r} {own.where}"])
    found = [own._replace(bytes=float(size), where=of) for size, _, of in (line.partition(" ") for line in rooms)]
    return min(found, key=lambda room: room.bytes)
