"""The bounded cache."""

import threading

import pytest

from puzzlefs.lru import WeightedLru

pytestmark = pytest.mark.unit


def test_what_was_used_longest_ago_goes_first() -> None:
    cache: WeightedLru[str, int] = WeightedLru(3)
    for number, key in enumerate("abc"):
        cache.put(key, number, 1)
    assert cache.get("a") == 0
    cache.put("d", 3, 1)
    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]
    assert cache.get("b") is None


def test_weights_count() -> None:
    cache: WeightedLru[str, int] = WeightedLru(10)
    cache.put("light", 1, 1)
    cache.put("medium", 2, 4)
    cache.put("heavy", 3, 6)
    assert "light" not in cache
    assert len(cache) == 2
    cache.put("medium", 4, 1)  # replaced, and lighter than before
    cache.put("more", 5, 3)
    assert len(cache) == 3
    assert cache.get("medium") == 4


def test_the_newest_stays_even_if_it_is_too_heavy() -> None:
    cache: WeightedLru[str, int] = WeightedLru(10)
    cache.put("a", 1, 1)
    cache.put("giant", 2, 100)
    assert cache.get("giant") == 2
    assert "a" not in cache
    cache.put("b", 3, 1)
    assert "giant" not in cache
    assert cache.get("b") == 3


def test_the_bound_holds_with_many_threads() -> None:
    cache: WeightedLru[int, int] = WeightedLru(100)

    def work(seed: int) -> None:
        for step in range(2000):
            key = (seed * 31 + step * 17) % 300
            found = cache.get(key)
            assert found is None or found == key
            cache.put(key, key, 1 + key % 5)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [key for key in range(300) if key in cache]
    assert sum(1 + key % 5 for key in kept) <= 100
    assert len(kept) == len(cache) > 15
