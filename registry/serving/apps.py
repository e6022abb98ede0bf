from django.apps import AppConfig


class ServingConfig(AppConfig):
    name = "registry.serving"
    label = "serving"

    def ready(self) -> None:
        from registry import deletion

        from .protection import deployments_that_use

        deletion.further_obstacles.append(deployments_that_use)
