"""Memory of the ranks of this world, for plans that all of them make alike."""

import math
import socket
from collections import Counter

from pretrain.config.layout import Layout
from pretrain.config.run import RunConfig
from pretrain.device.hardware import device_memory
from pretrain.device.host_memory import installed_memory
from pretrain.parallel.groups import Groups, gather_lists
from pretrain.plan.machine import USABLE
from pretrain.plan.policy import Room, given_room, share_of_machine
from pretrain.plan.room import host_needs, require_room


def room_of_ranks(config: RunConfig, groups: Groups) -> Room:
    """What the rank with the least can plan with: what the configuration says, or of its GPU, or its share of a machine
    without one. Collective."""
    host = host_share(groups)
    memory, where = device_memory(groups.device)
    own = host
    if groups.device.type == "cuda":
        own = Room(math.inf if memory is None else USABLE * memory, where, host=host.bytes)
    rooms = gather_lists([f"{own.bytes!r} {own.host!r} {own.where}"])
    found = [Room(float(size), of, float(beside)) for size, beside, of in (line.split(" ", 2) for line in rooms)]
    least = min(found, key=lambda room: room.bytes)._replace(host=min(room.host for room in found))
    given = given_room(config)
    return least if given is None else given._replace(host=least.host)


def host_share(groups: Groups) -> Room:
    """What this rank has of the memory of its machine, of whose ranks each has as much. Collective."""
    hosts = Counter(gather_lists([socket.gethostname()]))
    return share_of_machine(installed_memory(), hosts[socket.gethostname()])


def require_host(config: RunConfig, layout: Layout, groups: Groups) -> None:
    """Raise a ValueError if this rank's share of the host does not hold what waits there (`train.recompute=offload`).
    Collective."""
    share = host_share(groups)
    if groups.device.type == "cuda" and not math.isinf(share.bytes):
        require_room(host_needs(config, layout), int(share.bytes), share.where)
