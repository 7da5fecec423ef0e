"""A small correct launcher, and launchers with one mistake each."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

from mlp_hookspecs import Backend, hookimpl, wire
from mlp_hookspecs.process import WorkerLoop, kill_tree, send_request, start_worker


class ToyLauncher:
    """A process for each attempt, and a thread that waits for it."""

    def __init__(self, sink):
        self.sink = self.told_to(sink)
        self.processes = {}
        self.threads = []
        self.lock = threading.Lock()
        self.loop = WorkerLoop(self.sink)

    def told_to(self, sink):
        """Return the sink that is pushed to."""
        return sink

    def __enter__(self):
        self.loop.start()
        return self

    def __exit__(self, *_exception):
        with self.lock:
            left = list(self.processes.values())
        for process in left:
            self.end(process)
        for thread in self.threads:
            thread.join()
        self.loop.close()

    def end(self, process):
        """Kill what an attempt has started."""
        kill_tree(process.pid)

    def capacity(self):
        """Return no limit."""
        return

    def submit(self, request):
        """Start an attempt."""
        process, messages = start_worker(self.command(request))
        with self.lock:
            self.processes[request.id] = process
        self.loop.add(request.id, self.copy(process.stdout), self.copy(process.stderr), messages)
        thread = threading.Thread(target=self.attend, args=(request, process), daemon=True)
        self.threads.append(thread)
        thread.start()

    def command(self, request):
        """Return how to start the worker."""
        return request.command

    def copy(self, pipe):
        """Return a descriptor of our own."""
        import os

        return os.dup(pipe.fileno())

    def attend(self, request, process):
        """Wait for an attempt's end."""
        send_request(process, wire.dumps(request.step))
        self.reap(process)
        status = process.wait()
        process.stdout.close()
        process.stderr.close()
        with self.lock:
            self.processes.pop(request.id, None)
        self.tell_exit(request.id, status)

    def reap(self, process):
        """Wait until the worker has ended, and kill what it left while its number is still its own."""
        import os

        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    def tell_exit(self, attempt_id, status):
        """Let the loop tell the sink."""
        self.loop.exited(attempt_id, status)

    def cancel(self, attempt_ids, grace_seconds):
        """Ask, wait, kill."""
        with self.lock:
            found = [self.processes[attempt_id] for attempt_id in attempt_ids if attempt_id in self.processes]
        for process in found:
            process.terminate()
        deadline = time.monotonic() + grace_seconds
        while any(process.poll() is None for process in found) and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in found:
            if process.poll() is None:
                self.end(process)

    def reattach(self, attempt_ids):
        """Take up nothing."""
        return ()


class TwiceSink:
    """Passes everything on, and ends twice."""

    def __init__(self, sink):
        self.sink = sink

    def __getattr__(self, name):
        return getattr(self.sink, name)

    def finished(self, attempt_id, outcome):
        self.sink.finished(attempt_id, outcome)
        self.sink.finished(attempt_id, outcome)


class Twice(ToyLauncher):
    """Tells ends twice."""

    def told_to(self, sink):
        return TwiceSink(sink)


class LateSink(TwiceSink):
    """Tells of the log when all is over."""

    def __init__(self, sink):
        super().__init__(sink)
        self.kept = []

    def log(self, attempt_id, stream, data):
        self.kept.append((attempt_id, stream, data))

    def finished(self, attempt_id, outcome):
        self.sink.finished(attempt_id, outcome)
        for entry in self.kept:
            self.sink.log(*entry)


class Late(ToyLauncher):
    """Tells the log after the end."""

    def told_to(self, sink):
        return LateSink(sink)


class MixingSink(TwiceSink):
    """Does not tell the streams apart."""

    def log(self, attempt_id, stream, data):
        self.sink.log(attempt_id, "stdout", data)

    def finished(self, attempt_id, outcome):
        self.sink.finished(attempt_id, outcome)


class Mixing(ToyLauncher):
    """Mixes the streams."""

    def told_to(self, sink):
        return MixingSink(sink)


class StartlessSink(TwiceSink):
    """Does not tell of starts."""

    def started(self, attempt_id, host, pid):
        pass

    def finished(self, attempt_id, outcome):
        self.sink.finished(attempt_id, outcome)


class Startless(ToyLauncher):
    """Does not tell of starts."""

    def told_to(self, sink):
        return StartlessSink(sink)


class Vague(ToyLauncher):
    """Does not know why a worker has died."""

    def tell_exit(self, attempt_id, status):
        super().tell_exit(attempt_id, 1 if status < 0 else status)


class Sparing(ToyLauncher):
    """Kills only the worker itself."""

    def end(self, process):
        process.kill()

    def reap(self, process):
        pass


class Leaving(ToyLauncher):
    """Leaves the workers' children alone when the workers end by themselves."""

    def reap(self, process):
        pass


class Deserting(ToyLauncher):
    """Leaves its workers behind."""

    def __exit__(self, *_exception):
        pass


class Patient(ToyLauncher):
    """Waits for the grace to end it, for ever."""

    def cancel(self, attempt_ids, grace_seconds):
        for attempt_id in attempt_ids:
            if attempt_id in self.processes:
                self.processes[attempt_id].terminate()


class Sweeping(ToyLauncher):
    """Cancels everything."""

    def cancel(self, attempt_ids, grace_seconds):
        super().cancel(list(self.processes), grace_seconds)


class Strict(ToyLauncher):
    """Cannot cancel what it does not know."""

    def cancel(self, attempt_ids, grace_seconds):
        for attempt_id in attempt_ids:
            self.processes[attempt_id].terminate()


class Blocking(ToyLauncher):
    """Waits for each attempt's end before it returns."""

    def submit(self, request):
        super().submit(request)
        self.threads[-1].join()


class Bare(ToyLauncher):
    """Does not give workers their surroundings."""

    def command(self, request):
        import attrs

        kept = {name: text for name, text in request.command.variables.items() if name == "PYTHONPATH"}
        return attrs.evolve(request.command, variables=kept, unset=(), cwd=None)


class Claiming(ToyLauncher):
    """Claims to have taken up what never was."""

    def reattach(self, attempt_ids):
        return attempt_ids


class Full(ToyLauncher):
    """Never has room."""

    def capacity(self):
        return 0


class OneByOne(ToyLauncher):
    """Runs one attempt after the other."""

    def __init__(self, sink):
        super().__init__(sink)
        self.waiting = []

    def submit(self, request):
        self.waiting.append(request)
        if len(self.waiting) == 1:
            super().submit(request)

    def tell_exit(self, attempt_id, status):
        super().tell_exit(attempt_id, status)
        self.waiting.pop(0)
        if self.waiting and status == 0:
            super().submit(self.waiting[0])


class Plugin:
    """A plugin around a launcher."""

    def __init__(self, launcher):
        self.launcher = launcher

    @hookimpl
    def mlp_backends(self):
        """Declare it."""
        return [Backend("launcher", "toy", "A toy.", shares_driver_host=True)]

    @hookimpl
    def mlp_open_launcher(self, name, settings, sink):
        """Open it."""
        return self.launcher(sink)

    @hookimpl
    def mlp_launch_step(self, requests, launcher):
        """Start attempts."""
        for request in requests:
            launcher.submit(request)
        return True


good = Plugin(ToyLauncher)
BROKEN = {
    Twice: "test_attempt_runs",
    Late: "test_attempt_runs",
    Mixing: "test_attempt_runs",
    Startless: "test_attempt_runs",
    Vague: "test_death_by_signal",
    Sparing: "test_cancelling_kills_the_whole_tree",
    Leaving: "test_worker_that_leaves_children",
    Deserting: "test_leaving_ends_everything",
    Patient: "test_cancelling_kills_the_whole_tree",
    Sweeping: "test_cancelled_attempt_ends",
    Strict: "test_cancelling_what_has_ended",
    Blocking: "test_launching_returns_at_once",
    Bare: "test_worker_has_its_surroundings",
    Claiming: "test_reattaching_to_nothing",
    Full: "test_capacity",
    OneByOne: "test_gang_starts_together",
}
globals().update({kind.__name__: Plugin(kind) for kind in BROKEN})
