"""Settings: one file, read once from the environment and `.env`, wrong values refused by name.

Precedence: the process environment, then `.env` beside manage.py, then `$DLP_HOME/environment`, which
`manage.py up` writes with the addresses and secrets of the services that it started.
"""

import ipaddress
import socket
import sys
from datetime import timedelta
from pathlib import Path

import environ
from csp.constants import SELF, UNSAFE_EVAL, UNSAFE_INLINE
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
environ.Env.read_env(BASE_DIR / ".env")
DLP_HOME = Path(env.str("DLP_HOME", str(BASE_DIR / ".data"))).expanduser().absolute()
environ.Env.read_env(DLP_HOME / "environment")


def _read(reader, name: str, default):
    """Read one variable; a wrong value is refused with the variable's name."""
    try:
        return reader(name, default=default)
    except (ValueError, TypeError) as error:
        raise ImproperlyConfigured(f"{name}: cannot be read ({error})") from None


def _integer(name: str, default: int, low: int, high: int) -> int:
    value = _read(env.int, name, default)
    if not low <= value <= high:
        raise ImproperlyConfigured(f"{name}: is {value}; it must lie between {low} and {high}")
    return value


DEBUG = _read(env.bool, "DEBUG", False)
TESTING = "pytest" in sys.modules

# --- where it listens ---------------------------------------------------------------------------------
HOST = _read(env.str, "HOST", "127.0.0.1")
PORT = _integer("PORT", 8000, 1, 65535)
SERVE_PORT = _integer("SERVE_PORT", 8001, 1, 65535)
SERVE_URL = _read(env.str, "SERVE_URL", f"http://127.0.0.1:{SERVE_PORT}")
ALLOWED_HOSTS = _read(env.list, "ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = _read(env.list, "CSRF_TRUSTED_ORIGINS", [])
NUM_PROXIES = _integer("NUM_PROXIES", 0, 0, 10)
SECRET_KEY = _read(env.str, "SECRET_KEY", "insecure-development-key" if DEBUG or TESTING else "")
if not DEBUG and not TESTING:
    if not SECRET_KEY:
        raise ImproperlyConfigured(
            "SECRET_KEY: is not set. `make run` makes one; elsewhere set SECRET_KEY in the environment or .env."
        )
    if "*" in ALLOWED_HOSTS:
        raise ImproperlyConfigured("ALLOWED_HOSTS: must name the hosts; '*' is only for DEBUG=1")

# --- state --------------------------------------------------------------------------------------------
DATABASE_URL = _read(env.str, "DATABASE_URL", "postgresql://localhost:5432/dlplatform")
REDIS_URL = _read(env.str, "REDIS_URL", "redis://localhost:6379/0")
if not REDIS_URL.startswith(("redis://", "rediss://", "unix://")):
    raise ImproperlyConfigured("REDIS_URL: must be a redis:// address")
DATABASE_POOL_SIZE = _integer("DATABASE_POOL_SIZE", 16, 1, 200)
MODEL_STORAGE_PATH = _read(env.str, "MODEL_STORAGE_PATH", str(DLP_HOME / "models"))
DATASET_PATH = _read(env.str, "DATASET_PATH", str(DLP_HOME / "datasets"))
if MODEL_STORAGE_PATH == DATASET_PATH:
    raise ImproperlyConfigured("MODEL_STORAGE_PATH: is DATASET_PATH too; they must be two places")
JOB_PATH = DLP_HOME / "jobs"
CACHE_PATH = DLP_HOME / "cache"
OBJECT_GRACE_DAYS = _integer("OBJECT_GRACE_DAYS", 7, 1, 3650)
PREDICTION_LOG_DAYS = _integer("PREDICTION_LOG_DAYS", 30, 1, 3650)
PREDICTION_LOG_IMAGE_MB = _integer("PREDICTION_LOG_IMAGE_MB", 2000, 0, 10**9)
UPLOAD_MAX_BYTES = _integer("UPLOAD_MAX_BYTES", 5 * 1024**3, 1024, 1024**4)
SERVE_MEMORY_MB = _integer("SERVE_MEMORY_MB", 1024, 16, 16 * 1024**2)
SERVE_PROCESSES = _integer("SERVE_PROCESSES", 1, 1, 64)
SERVE_KEY_RATE = _integer("SERVE_KEY_RATE", 0, 0, 1_000_000)
SERVE_AS_GRAPH_AFTER = _integer("SERVE_AS_GRAPH_AFTER", 1000, 0, 10**9)
HF_IMPORT_ENDPOINT = _read(env.str, "HF_IMPORT_ENDPOINT", "https://huggingface.co")
if not HF_IMPORT_ENDPOINT.startswith(("https://", "http://")):
    raise ImproperlyConfigured("HF_IMPORT_ENDPOINT: must be an address that begins with https:// (or http://).")
MODEL_UPLOAD_MAX_BYTES = _integer("MODEL_UPLOAD_MAX_BYTES", 64 * 1024**3, 1024, 1024**5)

# --- work ---------------------------------------------------------------------------------------------
NODE_NAME = _read(env.str, "NODE_NAME", socket.gethostname())[:100]
NODE_ADDRESS = _read(env.str, "NODE_ADDRESS", "")
if NODE_ADDRESS:
    try:
        ipaddress.ip_address(NODE_ADDRESS)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"NODE_ADDRESS: {error}; give the address by which others reach this machine"
        ) from None
MAX_WORKERS = _integer("MAX_WORKERS", 2, 1, 256)
GPU_ENABLED = _read(env.bool, "GPU_ENABLED", False)
LEASE_SECONDS = _integer("LEASE_SECONDS", 15, 3, 600)
RECONCILE_SECONDS = _integer("RECONCILE_SECONDS", 5, 1, 600)
# What a run with code of a user's own may use at most.
SANDBOX_MEMORY_MB = _integer("SANDBOX_MEMORY_MB", 4096, 512, 4 * 1024**2)
SANDBOX_DISK_MB = _integer("SANDBOX_DISK_MB", 10_240, 16, 64 * 1024**2)
SANDBOX_PROCESSES = _integer("SANDBOX_PROCESSES", 256, 16, 65_536)
SANDBOX_SECONDS = _integer("SANDBOX_SECONDS", 86_400, 10, 90 * 86_400)
RUN_STALL_SECONDS = _integer("RUN_STALL_SECONDS", 120, 5, 86400)
DLP_SAMPLES = _read(env.bool, "DLP_SAMPLES", True)
DLP_ADMIN_USERNAME = _read(env.str, "DLP_ADMIN_USERNAME", "admin")
DLP_ADMIN_PASSWORD = _read(env.str, "DLP_ADMIN_PASSWORD", "")

# --- the application ----------------------------------------------------------------------------------
INSTALLED_APPS = [
    *(["daphne"] if DEBUG else []),  # its runserver replaces Django's; it costs memory that production saves
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "rest_framework_simplejwt.token_blacklist",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "channels",
    "guardian",
    "axes",
    "csp",
    "django_htmx",
    "dlplatform",
    "dlplatform.objects",
    "dlplatform.accounts",
    "datasets",
    "registry",
    "registry.serving",
    "training",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "dlplatform.web.ContentSecurityPolicy",
    "dlplatform.web.ContentTypeOfErrors",
    "dlplatform.web.TrailingSlash",
    "dlplatform.web.AdminQuery",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "dlplatform.urls"
ASGI_APPLICATION = "dlplatform.asgi.application"
APPEND_SLASH = True  # pages: /runs leads to /runs/; the API needs none either way

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "dlplatform.accounts.organizations.context",
            ],
            "builtins": ["dlplatform.accounts.templatetags.platform"],
        },
    }
]

_NO_DATABASE = "DATABASE_URL: must be a postgresql:// address with a name; PostgreSQL is the only database"
try:
    _database = environ.Env.db_url_config(DATABASE_URL)
except (ValueError, ImproperlyConfigured):  # a port that is no number, say; the address may hold a password
    raise ImproperlyConfigured(_NO_DATABASE) from None
if _database.get("ENGINE") != "django.db.backends.postgresql":
    raise ImproperlyConfigured(_NO_DATABASE)
_database["TEST"] = {"NAME": "test_dlplatform"}
# Also with a pool, which would otherwise hand out the connections of a server that has restarted since.
_database["CONN_HEALTH_CHECKS"] = True
_database["CONN_MAX_AGE"] = None
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "cache",
    }
}
CHANNEL_PREFIX = "dlp"
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": CHANNEL_PREFIX},
    }
}
RQ_QUEUES = ("datasets", "training")


def _storage(variable: str, location: str) -> dict:
    if location.startswith("s3://"):
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        if not bucket:
            raise ImproperlyConfigured(f"{variable}: {location} names no bucket; write s3://bucket/prefix")
        endpoint = env.str("AWS_S3_ENDPOINT_URL", default=None)
        return {
            "BACKEND": "dlplatform.objects.s3.S3ObjectStorage",
            "OPTIONS": {
                "bucket_name": bucket,
                "location": prefix,
                "default_acl": None,
                "file_overwrite": True,
                "endpoint_url": endpoint,
                "region_name": env.str("AWS_DEFAULT_REGION", default=None),
                "addressing_style": "path" if endpoint else None,  # such servers seldom have a name for every bucket
            },
        }
    return {"BACKEND": "dlplatform.objects.storages.DurableFileStorage", "OPTIONS": {"location": location}}


STORAGES = {
    "default": _storage("DLP_HOME", str(DLP_HOME / "files")),
    "models": _storage("MODEL_STORAGE_PATH", MODEL_STORAGE_PATH),
    "datasets": _storage("DATASET_PATH", DATASET_PATH),
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
FILE_UPLOAD_TEMP_DIR = None
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 1024 * 1024

# --- static files -------------------------------------------------------------------------------------
STATIC_URL = "/static/"
STATIC_ROOT = DLP_HOME / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
]

# --- who is calling -----------------------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
if TESTING:
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"

ANONYMOUS_USER_NAME = None  # guardian: no anonymous user row
SILENCED_SYSTEM_CHECKS = ["guardian.W001"]  # its permissions are asked in dlplatform.accounts.access
GUARDIAN_MONKEY_PATCH_USER = False
GUARDIAN_RAISE_403 = False

AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=10)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_TEMPLATE = "accounts/locked.html"
AXES_LOCKOUT_CALLABLE = "dlplatform.accounts.lockout.locked_out"
AXES_IPWARE_PROXY_COUNT = NUM_PROXIES or None
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False

SIMPLE_JWT = {
    "ALGORITHM": "HS256",
    "SIGNING_KEY": SECRET_KEY,
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=15),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=7),
    "ROTATE_REFRESH_TOKENS": True,
    "BLACKLIST_AFTER_ROTATION": True,
    "UPDATE_LAST_LOGIN": True,
    "USER_ID_FIELD": "id",
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "dlplatform.accounts.authentication.ApiKeyAuthentication",
        "dlplatform.accounts.authentication.TokenAuthentication",
        "dlplatform.accounts.authentication.CookieAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["dlplatform.accounts.access.DeclaredPolicy"],
    "DEFAULT_PARSER_CLASSES": ["dlplatform.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "dlplatform.schema.Schema",
    "EXCEPTION_HANDLER": "drf_standardized_errors.handler.exception_handler",
    "DEFAULT_THROTTLE_RATES": {"login": "30/min", "anonymous": "120/min"},
    "NUM_PROXIES": NUM_PROXIES,
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "COMPACT_JSON": True,
}
DRF_STANDARDIZED_ERRORS = {
    "EXCEPTION_HANDLER_CLASS": "dlplatform.api.ErrorHandler",
    "ENABLE_IN_DEBUG_FOR_UNHANDLED_EXCEPTIONS": True,
    "ALLOWED_ERROR_STATUS_CODES": ["400", "401", "403", "404", "409", "413", "415", "422", "429"],
    "ERROR_SCHEMAS": dict.fromkeys(("409", "413", "422"), "dlplatform.schema.RefusalResponse"),
}
SPECTACULAR_SETTINGS = {
    "TITLE": "DL Platform API",
    "VERSION": "1.0.0",
    "DESCRIPTION": "Data, training, registry and serving. See /docs for a page to try it out.",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["dlplatform.accounts.access.DeclaredPolicy"],
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    # Choices stay where they are used: as components their names would collide and become Code4efEnum.
    "POSTPROCESSING_HOOKS": [],
}

# --- what the browser may do --------------------------------------------------------------------------
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:", "blob:"],
        "connect-src": [SELF],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'none'"],
        "form-action": [SELF],
    },
}
# Unfold's pages evaluate Alpine's expressions and write styles; the rest of the policy holds there too.
ADMIN_CONTENT_SECURITY_POLICY = {"script-src": [SELF, UNSAFE_EVAL], "style-src": [SELF, UNSAFE_INLINE]}
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
_HTTPS = _read(env.bool, "HTTPS", False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _HTTPS
if _HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 31536000

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

UNFOLD = {
    "SITE_TITLE": "DL Platform admin",
    "SITE_HEADER": "DL Platform",
    "SITE_URL": "/",
    "SITE_SYMBOL": "neurology",
    "SHOW_HISTORY": True,
    "SIDEBAR": {"show_search": True, "show_all_applications": True},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": _read(env.str, "LOG_LEVEL", "WARNING")},
    "loggers": {
        "axes": {"level": "ERROR"},
        "dlplatform": {"level": "INFO"},
        "registry.serving.server.compiling": {"level": "INFO"},
    },
}
