"""A queue of e-mails: none is lost, and each is tried until it is sent or refused for good.

To run it:

    manyhands serve --data data --queue mails,attempts=20,backoff=10,backoff_max=3600
    python email_queue.py work localhost:25     # one or many, on any machine
    python email_queue.py send me@here.example you@there.example "A subject" < text
    manyhands peek mails.dead                   # those that were refused, and why
    manyhands redrive mails.dead                # once more, when that is mended
"""

import os
import smtplib
import sys
from email.message import EmailMessage
from email.utils import make_msgid

import manyhands

SERVER = os.environ.get("SERVER", "127.0.0.1:5000")


def send(mails, sender, recipient, subject):
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, recipient, subject
    # A worker that dies after sending it, and before saying so, has it sent twice: with one ID.
    mail["Message-ID"] = make_msgid()
    mail.set_content(sys.stdin.read())
    mails.put({"from": sender, "to": recipient, "mail": mail.as_bytes()})  # on disk from now on


def deliver(item, smtp_server):
    with smtplib.SMTP(*smtp_server.split(":"), timeout=60) as smtp:
        smtp.sendmail(item["from"], [item["to"]], item["mail"])


def is_final(error):
    """Whether the mail server will never take this mail: its answer was a code from 500 on."""
    answers = getattr(error, "recipients", {}).values()
    codes = [code for code, _ in answers] or [getattr(error, "smtp_code", 0)]
    return min(codes) >= 500


def work(mails, smtp_server):
    while True:
        with mails.lease() as lease:
            try:
                deliver(lease.item, smtp_server)
            except Exception as error:  # the mail or its server is bad, not this worker
                lease.nack(reason=repr(error), give_up=is_final(error))
            else:
                lease.ack()


with manyhands.connect(SERVER) as client:
    {"send": send, "work": work}[sys.argv[1]](client.queue("mails"), *sys.argv[2:])
