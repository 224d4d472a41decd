"""What tests of the gearkv tool have in common: a folder of their own, and runs that are to be ended."""
import os
import signal
import subprocess
import tempfile
import time
import unittest


class ToolCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self, tool, *arguments):
        """A run that catches signals by now."""
        process = subprocess.Popen([tool, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.kill)
        for _ in range(1000):
            with open("/proc/%d/status" % process.pid) as status:
                caught = [line for line in status if line.startswith("SigCgt:")]
            if caught and int(caught[0].split()[1], 16) >> (signal.SIGTERM - 1) & 1:
                return process
            time.sleep(0.01)
        self.fail("the process catches no signals")
