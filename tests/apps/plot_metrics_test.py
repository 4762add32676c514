"""apps/plot/plot_metrics.py on made-up metrics: what it draws and what it refuses."""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(TOP, "apps", "plot"))
import plot_metrics  # noqa: E402


def record(step):
    values = {"step": step, "loss": 6.0 / (1 + step), "tokens_per_second": 1000.0 + step,
              "learning_rate": 1e-3, "grad_norm": 1.0, "balance_loss": 1.2, "lambda_candidate": 2.0,
              "lambda_selected": 1.5, "bytes_per_token": 512.0}
    if step % 2 == 0:
        values.update(val_loss=5.0 / (1 + step), val_perplexity=100.0 / (1 + step))
    return values


class PlotMetrics(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def write(self, text, name="metrics.jsonl"):
        path = os.path.join(self.directory, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def run_main(self, *arguments):
        """Returns exit status and what was printed to stderr."""
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            status = plot_metrics.main(list(arguments))
        return status, errors.getvalue()

    def assert_refused(self, path, message):
        output = os.path.join(self.directory, "refused.png")
        status, errors = self.run_main(path, "--output", output)
        self.assertEqual(status, plot_metrics.EXIT_BAD_DATA)
        self.assertEqual(errors.count("\n"), 1, errors)
        self.assertIn(path, errors)
        self.assertIn(message, errors)
        self.assertFalse(os.path.exists(output))

    def test_every_series_is_drawn(self):
        path = self.write("".join(json.dumps(record(s)) + "\n" for s in range(5)))
        figure = plot_metrics.draw([plot_metrics.Run(path, 0, False)], "title")
        lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        self.assertEqual(set(lines), {"training", "validation", "tokens/s", "candidate ranks",
                                      "selected ranks", "bytes per token", "gradient norm",
                                      "balance loss", "learning rate"})
        self.assertEqual(list(lines["training"].get_xdata()), [0, 1, 2, 3, 4])
        self.assertEqual(list(lines["validation"].get_xdata()), [0, 2, 4])
        self.assertEqual(list(lines["tokens/s"].get_ydata()), [1000, 1001, 1002, 1003, 1004])

    def test_picture_is_written(self):
        path = self.write("".join(json.dumps(record(s)) + "\n" for s in range(5)))
        status, errors = self.run_main(path)
        self.assertEqual((status, errors), (0, ""))
        with open(os.path.join(self.directory, "metrics.png"), "rb") as file:
            self.assertEqual(file.read(8), b"\x89PNG\r\n\x1a\n")

    def test_missing_keys_are_left_out(self):
        path = self.write('{"step": 1, "loss": 2}\n{"step": 2, "loss": null}\n{"step": 3, "loss": NaN}\n')
        self.assertEqual(plot_metrics.series(plot_metrics.read_metrics(path), "loss"), ([1], [2]))
        self.assertEqual(self.run_main(path)[0], 0)

    def test_resume_keeps_the_later_line_of_a_step(self):
        path = self.write('{"step": 1, "loss": 3}\n{"step": 2, "loss": 9}\n{"step": 2, "loss": 2}\n')
        self.assertEqual(plot_metrics.series(plot_metrics.read_metrics(path), "loss"),
                         ([1, 2], [3, 2]))

    def test_last_line_of_a_running_job_may_be_incomplete(self):
        path = self.write('{"step": 1, "loss": 3}\n{"step": 2, "lo')
        status, errors = self.run_main(path)
        self.assertEqual(status, 0)
        self.assertIn(":2: incomplete last line ignored", errors)

    def test_bad_files_are_refused(self):
        self.assert_refused(os.path.join(self.directory, "none.jsonl"), "No such file")
        self.assert_refused(self.write(""), "no metrics in it")
        self.assert_refused(self.write('{"step": 1}\nloss = 3\n{"step": 2}\n'), ":2: not JSON")
        self.assert_refused(self.write('{"loss": 1}\n'), ":1: not an object with an integer 'step'")
        self.assert_refused(self.write("[1, 2]\n"), ":1: not an object")


if __name__ == "__main__":
    unittest.main()
