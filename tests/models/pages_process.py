"""New pages that a kernel touches once it has been computed before, the fewest of four calls."""

import resource

import torch

from ridgescope.models import CNN, empirical_ntk


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = CNN((1, 28, 28), 1, width=16, depth=3, generator=generator, dtype=torch.float32)
    x = torch.randn(40, 1, 28, 28, generator=generator)  # arrays of 2 MB, about fifteen of them alive in a pass
    pages = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        empirical_ntk(model, None, x)
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(min(pages[1:]))


if __name__ == "__main__":
    main()
