"""A backend of joblib, whose work is done by an executor.

    import joblib, manyhands.joblib

    with joblib.parallel_config("manyhands", n_jobs=4):
        search.fit(x, y)

Other options of ``parallel_config`` are those of `manyhands.Executor`: with ``address=``, the work
is done by the workers of that server, of which ``n_jobs`` says how many there are.
"""

from joblib import register_parallel_backend
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase

from . import _executor


class Backend(AutoBatchingMixin, ParallelBackendBase):
    """Has the batches of a `joblib.Parallel` called by an executor, which it has for itself."""

    default_n_jobs = -1
    supports_retrieve_callback = True
    _executor = None

    def __init__(self, nesting_level=None, inner_max_num_threads=None, address=None, **options):
        if inner_max_num_threads is not None:
            text = "inner_max_num_threads= is not supported: set OMP_NUM_THREADS for the workers"
            raise NotImplementedError(text)
        super().__init__(nesting_level=nesting_level)
        self._address = address
        self._options = options

    def effective_n_jobs(self, n_jobs):
        """How many batches are worked on at a time."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(_executor._processors() + 1 + n_jobs, 1)

    def configure(self, n_jobs=1, parallel=None, **_):
        """Start what does the work of a `joblib.Parallel`."""
        self.parallel = parallel
        self._n_jobs = self.effective_n_jobs(n_jobs)
        self._start()
        return self._n_jobs

    def _start(self):
        workers = self._n_jobs if self._address is None else None
        options = dict({"workers": workers}, **self._options)
        self._executor = _executor.Executor(self._address, **options)

    def submit(self, func, callback=None):
        """Have a batch called; the callback is given its future."""
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    # The name before joblib 1.5.
    apply_async = submit

    def retrieve_result_callback(self, future):
        """What the batch came to, or raise."""
        return future.result()

    def abort_everything(self, ensure_ready=True):
        """End what was begun: nobody wants its results."""
        if self._executor is not None:
            self._executor._master.abandon()
        self.terminate()
        if ensure_ready:
            self._start()

    def terminate(self):
        """The `joblib.Parallel` has ended."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()
        self.reset_batch_stats()


register_parallel_backend("manyhands", Backend)
