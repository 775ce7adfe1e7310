"""A backend that is the tiled one with a fault, as kernels may have it on a card that has not run them before."""

from typing import Any

from late_interaction import tiled

fault: str | None = None
backwards = 0


def forward(tokens: Any, save_for_backward: bool = True) -> Any:
    if fault == "does not compile":
        raise RuntimeError("at 41:12: no tensor cores\nand more lines of a compiler")
    (i2t, t2i), kept = tiled.forward(tokens, save_for_backward)
    if fault == "wrong value":
        t2i = t2i.clone()
        t2i[-1] += 0.2
    return (i2t, t2i), kept


def backward(tokens: Any, grads: Any, residuals: Any, needs: Any = (True, True)) -> Any:
    global backwards
    backwards += 1
    if fault == "raises later" and backwards == 4:  # a shape that came up then
        raise ValueError("out of resource: shared memory")
    of_images, of_texts = tiled.backward(tokens, grads, residuals, needs)
    if fault == "lost gradient" and needs[0]:
        of_images = of_images.clone()
        of_images[:, -1] = 0  # of a row that does not exist
    return of_images, of_texts
