"""The backend of joblib, with joblib itself and with what people use it for."""

import os
import time

import manyhands
import pytest
from test_worker import KEY, Crew

# Where these are to be tested, they are installed.
if "MANYHANDS_PEERS" not in os.environ:
    pytest.importorskip("joblib")
    pytest.importorskip("sklearn")

import joblib  # noqa: E402
import manyhands.joblib  # noqa: E402

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes of a worker need POSIX")


@pytest.fixture
def crew(tmp_path):
    crew = Crew(tmp_path)
    yield crew
    crew.close()


def square_and_pid(n):
    time.sleep(0.01)
    return n * n, os.getpid()


def wrong(n):
    if n == 3:
        raise KeyError("no 3")
    time.sleep(1000 if n > 3 else 0)


def test_calls_of_joblib_run_in_processes_of_ours():
    with joblib.parallel_config("manyhands", n_jobs=2):
        found = joblib.Parallel()(joblib.delayed(square_and_pid)(n) for n in range(100))
    assert [square for square, _ in found] == [n * n for n in range(100)]
    assert os.getpid() not in {pid for _, pid in found}


def test_calls_of_joblib_go_to_a_server(crew):
    options = {"address": crew.server.address, "authkey": KEY, "workers": 2}
    with joblib.parallel_config("manyhands", n_jobs=2, **options):
        with joblib.Parallel(return_as="generator") as parallel:
            assert list(parallel(joblib.delayed(abs)(-n) for n in range(50))) == list(range(50))
            assert [queue for queue in crew.client.queues() if queue.name.startswith("calls/")]
            assert list(parallel(joblib.delayed(abs)(-n) for n in range(3))) == [0, 1, 2]


def test_an_exception_ends_what_was_begun():
    with joblib.parallel_config("manyhands", n_jobs=2):
        with joblib.Parallel(batch_size=1) as parallel:
            with pytest.raises(KeyError, match="no 3") as raised:
                parallel(joblib.delayed(wrong)(n) for n in range(10))
            assert isinstance(raised.value.__cause__, manyhands.RemoteTraceback)
            assert parallel(joblib.delayed(abs)(-n) for n in range(3)) == [0, 1, 2]


def test_parallel_calls_within_parallel_calls():
    with joblib.parallel_config("manyhands", n_jobs=2):
        found = joblib.Parallel()(joblib.delayed(inner)(n) for n in range(4))
    assert found == [[0, n, 2 * n] for n in range(4)]


def inner(n):
    return joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(k * n, 1) for k in range(3))


def test_what_is_not_supported_is_refused():
    with pytest.raises(NotImplementedError, match="inner_max_num_threads= is not supported"):
        manyhands.joblib.Backend(inner_max_num_threads=1)
    with joblib.parallel_config("manyhands", n_jobs=0), pytest.raises(ValueError, match="n_jobs"):
        joblib.Parallel()(joblib.delayed(abs)(n) for n in range(3))


def test_a_grid_search_of_scikit_learn_on_two_workers():
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier

    x, y = load_iris(return_X_y=True)
    grid = {"n_neighbors": [1, 5, 15, 60], "weights": ["uniform", "distance"]}
    alone = GridSearchCV(KNeighborsClassifier(), grid, cv=3).fit(x, y)
    with joblib.parallel_config("manyhands", n_jobs=2):
        search = GridSearchCV(KNeighborsClassifier(), grid, cv=3).fit(x, y)
    assert search.best_params_ == alone.best_params_
    means = [list(done.cv_results_["mean_test_score"]) for done in (search, alone)]
    assert means[0] == means[1]
