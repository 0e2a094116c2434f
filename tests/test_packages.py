from pathlib import Path

import pytest

import cluster
import coordinator
import worker

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("package", [cluster, coordinator, worker], ids=lambda package: package.__name__)
def test_the_package_imported_is_the_one_of_this_repository(package: object) -> None:
    # Other distributions use names as plain as these.
    assert Path(package.__file__) == REPOSITORY / package.__name__ / "__init__.py"
