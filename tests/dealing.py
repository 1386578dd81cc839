"""What an order deals to every rank, spelled out row by row."""

from atoms.activations.order import Order, epoch_plan


def dealt(order: Order, epoch: int, counts: list[int], world_size: int) -> list[list[tuple[int, int]]]:
    """Rows ``(chunk, place in chunk)`` of every global batch, ranks' parts one after the other."""
    plan = epoch_plan(order, epoch, counts)
    batches = [[] for _ in range(plan.n_batches)]
    for rank in range(world_size):
        lanes = order.lanes_of(rank, world_size)
        width = len(lanes) * order.lane_rows
        for pool in range(plan.n_pools):
            numbers = plan.batches(pool)
            slots = {}
            for piece in plan.pieces(pool, lanes):
                for row, slot in zip(range(piece.start, piece.stop), piece.slots, strict=True):
                    assert slot not in slots
                    slots[int(slot)] = (piece.chunk, row)
            assert sorted(slots) == list(range(len(numbers) * width))
            for j, number in enumerate(numbers):
                batches[number] += [slots[j * width + i] for i in range(width)]
    return batches
