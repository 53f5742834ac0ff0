"""Visitors of the demonstration: they log in, register, and change their password."""

import uuid

from locust import HttpUser, between, runners, task

# Debian's python3-locust was built without a version, and a master takes a worker that names none
# for one of locust 1.x and refuses it.
runners.__version__ = runners.__version__ or "unknown"

# 202: the write is kept and will reach every server; one of them is out just now.
WRITTEN = (201, 202)


def described(response):
    """The status and, if the answer is lb's own and no server's, its reason; or why there is no answer."""
    return f"{response.status_code} {response.headers.get('X-LB-Error') or getattr(response, 'error', '')}".strip()


class Visitor(HttpUser):
    wait_time = between(0.1, 0.5)

    def on_start(self):
        self.username = None

    @task(10)
    def login(self):
        with self.client.get("/login", catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"expected 200, got {described(response)}")
            elif not response.text.startswith("logged in on "):
                response.failure(f"unexpected answer {response.text[:80]!r}")

    @task(3)
    def register(self):
        username = f"visitor-{uuid.uuid4().hex}"  # unique over all workers
        if self.write("/register", username):
            self.username = username

    @task(2)
    def change_password(self):
        if self.username:
            self.write("/changePassword", self.username)
        else:
            self.register()

    def write(self, path, username):
        form = {"username": username, "password": uuid.uuid4().hex}
        with self.client.post(path, data=form, catch_response=True) as response:
            if response.status_code in WRITTEN:
                return True
            response.failure(f"expected 201 or 202, got {described(response)}")
            return False
