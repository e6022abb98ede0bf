from django.apps import AppConfig


class ObjectsConfig(AppConfig):
    name = "dlplatform.objects"
    label = "objects"
    verbose_name = "object store"
