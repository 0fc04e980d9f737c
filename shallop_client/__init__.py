"""What an application needs of Shallop: the model that runs now, a word when it changes, a counter.

    from shallop_client import Live, Model

    model = Model("digits")
    live = Live("digits")
    for release in model.changes():         # the one that runs now, then each that follows
        network = load(release.path)        # release.directory never changes
        live.use(release)
        ...
        live.record(latency_ms=4.2, confidence=0.97)

For: applications of any kind on the device; the standard library alone, Python 3.9 and newer, Linux. The
package stands by itself: it may be copied as a folder into an environment that holds nothing else of Shallop.
Not for: loading or running models, or talking to the agent: it only reads what the agent writes, and
writes one small file that the agent reads.
"""

from shallop_client.live import LIVE_DIR, Live
from shallop_client.model import MODELS_DIR, Model, NoModelError, Release, Watcher

__all__ = ["LIVE_DIR", "MODELS_DIR", "Live", "Model", "NoModelError", "Release", "Watcher"]
