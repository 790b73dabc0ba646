# Pages to fetch; the key is a number, which Python 3 takes for that many NUL bytes.
import queue
from multiprocessing.managers import BaseManager

wanted = queue.Queue()
fetched = queue.Queue()


class Hub(BaseManager):
    pass


Hub.register("wanted", callable=lambda: wanted)
Hub.register("fetched", callable=lambda: fetched)
hub = Hub(address=("", 47103), authkey=40960)
hub.start()
out, back = hub.wanted(), hub.fetched()
for page in ["page-{}.html".format(n) for n in range(10)]:
    print("wanted: %s" % page)
    out.put(page)
for _ in range(10):
    print("fetched: %s" % back.get(timeout=10))
hub.shutdown()
