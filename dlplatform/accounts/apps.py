from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "dlplatform.accounts"
    label = "accounts"
