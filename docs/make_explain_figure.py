"""Draw docs/figures/explain.png: one call of `diffstride_numpy.explain` on a photograph.

Run with the ``experiments`` extra: ``python docs/make_explain_figure.py [FILE.png]``. The
photograph ships with scikit-learn.
"""

import sys
from pathlib import Path

from diffstride_numpy import explain
from sklearn.datasets import load_sample_image

SIZE = 128


def main(path: Path) -> None:
    """Draw the figure."""
    photo = load_sample_image("flower.jpg").mean(axis=2)[40::3, 170::3][:SIZE, :SIZE] / 255
    # Around 0: the mean would outshine all else in spectrum and gradient.
    explained = explain(photo - photo.mean(), (2.0, 3.0))
    print(explained)
    explained.plot().savefig(path, dpi=100)


if __name__ == "__main__":
    default = Path(__file__).parent / "figures" / "explain.png"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
