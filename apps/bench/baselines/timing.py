"""Times device work with events and collects the results."""

import time

import torch

WARM_UP = 3


class Timer:
    """Measures bodies that queue work on the current stream.

    repeats: timed calls of each body; fewer (at least 5) where these would take longer than `seconds`.
    sets: number of input sets; a body gets the number of the set that it shall use, in turn, so that
    its inputs are not in the cache from the call before.
    """

    def __init__(self, repeats, seconds, sets):
        self.repeats, self.seconds, self.sets = repeats, seconds, sets
        self.results = []
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(2 * cache, dtype=torch.uint8, device="cuda")

    def measure(self, work, name, body, check=None):
        """Runs `body` and appends its median to the results; results of the same `work` may be
        compared. check() returns a remark and facts to keep. Running out of memory is a result, too.
        Returns the median in milliseconds, or None."""
        result = {"work": work, "name": name, "note": ""}
        try:
            if check is not None:
                result["note"], facts = check()
                result.update(facts)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            samples = self._samples(body)
        except torch.OutOfMemoryError:
            result["error"] = "out of device memory"
            self._keep(result)
            return None
        samples.sort()
        half = len(samples) // 2
        median = samples[half] if len(samples) % 2 else (samples[half - 1] + samples[half]) / 2
        result.update(median_ms=median, least_ms=samples[0], most_ms=samples[-1],
                      repeats=len(samples), peak_bytes=torch.cuda.max_memory_allocated())
        self._keep(result)
        return median

    def _samples(self, body):
        for i in range(WARM_UP):
            body(i % self.sets)
        torch.cuda.synchronize()
        start = time.perf_counter()
        body(0)
        torch.cuda.synchronize()
        once = time.perf_counter() - start
        count = max(5, min(self.repeats, int(self.seconds / max(once, 1e-9))))
        events = []
        for i in range(count):
            first = torch.cuda.Event(enable_timing=True)
            last = torch.cuda.Event(enable_timing=True)
            self.flush.fill_(i % 128)
            first.record()
            body(i % self.sets)
            last.record()
            events.append((first, last))
        torch.cuda.synchronize()
        return [first.elapsed_time(last) for first, last in events]

    def _keep(self, result):
        self.results.append(result)
        value = f"{result['median_ms']:10.3f} ms" if "median_ms" in result else result["error"]
        print(f"{result['work']:20s} {result['name']:42s} {value}  {result['note']}", flush=True)
