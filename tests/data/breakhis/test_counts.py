from densenet_flax.data.breakhis import counts
from densenet_flax.data.breakhis.name_list import dataset_of_names, list_file_names


def test_known_counts_match_the_fold_files(breakhis_folds):
    dataset = dataset_of_names(list_file_names(breakhis_folds / "dsfold1.txt"))
    columns = dataset.columns
    tiles = list(zip(columns["subtype"], columns["magnification"], strict=True))
    assert sum(map(sum, counts.KNOWN.values())) == len(tiles) == 7909
    assert counts.describe_difference(tiles) == ""
    assert counts.describe_difference([tile for tile in tiles if tile[1] == 100], 100) == ""
    changed = [*sorted(tiles)[1:], ("adenosis", 400)]
    assert counts.describe_difference(changed) == (
        "7909 of 7909 images; missing: adenosis 40X 1; beyond the known: adenosis 400X 1"
    )
