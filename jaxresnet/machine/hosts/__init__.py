"""One run on several processes: what they are to each other. Everything that computes together is JAX's own."""

from jaxresnet.machine.hosts.launch import Launch
from jaxresnet.machine.hosts.peers import Peers


def find_peers(launch: Launch | None) -> Peers:
    """The processes of this run; a process without a `launch` is alone.

    For commands only, before JAX's backend starts. Raises UserError if they cannot be joined.
    """
    if launch is None:
        return Peers()
    from jaxresnet.machine.workarounds import own_process

    own_process()
    from jaxresnet.machine.hosts.joined import join

    return join(launch)
