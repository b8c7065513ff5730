"""A piece of work that tells where it was done."""

import time


def where(problem, threads):
    """The address of the node; slow enough that no node does all of them."""
    import ray

    time.sleep(0.3)
    return ray.util.get_node_ip_address()
