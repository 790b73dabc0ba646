"""A crawler: every page of a site once, with retries, and a reason for each page that failed.

To run it:

    manyhands serve --queue pages,results=found,attempts=4,dedup=86400 --queue found
    python crawler.py work                            # one or many, on any machine
    python crawler.py crawl http://localhost:8000/    # prints what was found
    manyhands peek pages.dead                         # what was not, and why
"""

import os
import re
import sys
from hashlib import sha256
from urllib.parse import urljoin
from urllib.request import urlopen

import manyhands

SERVER = os.environ.get("SERVER", "127.0.0.1:5000")


def links(url):
    """Fetch a page; return its links to pages of the same site."""
    with urlopen(url, timeout=10) as reply:
        page = reply.read().decode(errors="replace")
    found = {urljoin(url, link) for link in re.findall(r'<a [^>]*href="([^"#]+)', page)}
    return sorted(link for link in found if link.startswith(urljoin(url, "/")))


def put(pages, url):
    pages.put(url, key=sha256(url.encode()).digest())  # nothing is put twice within `dedup` seconds


def crawl(pages, found, url):
    put(pages, url)
    pages.join()  # until every page is done or given up
    while not found.empty():
        print(*found.get())


def work(pages, found):
    while True:
        with pages.lease() as lease:
            try:
                there = links(lease.item)
            except Exception as error:  # the page is bad, not this worker
                gone = getattr(error, "code", None) in (404, 410)
                lease.nack(reason=repr(error), give_up=gone)  # else again, after a pause
            else:
                for url in there:
                    put(pages, url)
                lease.ack((lease.item, len(there)))


with manyhands.connect(SERVER) as client:
    run = {"crawl": crawl, "work": work}[sys.argv[1]]
    run(client.queue("pages"), client.queue("found"), *sys.argv[2:])
