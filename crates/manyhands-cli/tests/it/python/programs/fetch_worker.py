# Fetches pages until there are no more.
import time
from multiprocessing.managers import BaseManager


class Hub(BaseManager):
    pass


Hub.register("wanted")
Hub.register("fetched")
hub = Hub(address=("127.0.0.1", 47103), authkey=40960)
hub.connect()
wanted, fetched = hub.wanted(), hub.fetched()
while not wanted.empty():
    page = wanted.get(True, timeout=5)
    time.sleep(1)
    fetched.put("%s, 200 OK" % page)
