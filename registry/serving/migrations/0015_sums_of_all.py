"""Running sums of bandits, pairs and canaries too. Those there are, of splits, are made anew by the next tick."""

import django.db.models.deletion
from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

import registry.serving.experiments.models


def forget(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("serving", "Experiment").objects.exclude(summed=None).update(summed=None)


class Migration(migrations.Migration):
    dependencies = [("serving", "0014_logged_images")]

    operations = [
        migrations.DeleteModel(name="RunningSum"),
        migrations.RunPython(forget, migrations.RunPython.noop),
        migrations.AddField(
            model_name="rollout",
            name="summed",
            field=models.JSONField(help_text="Up to where its running sums are: {until, last_record}", null=True),
        ),
        migrations.CreateModel(
            name="RunningSum",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("holder", models.UUIDField(help_text="The experiment, or the canary, that it is a sum of")),
                ("measure", models.PositiveSmallIntegerField(help_text="Position among its holder's readings")),
                (
                    "part",
                    models.CharField(
                        help_text="What a reading tells apart, as a bandit's propensities", max_length=30
                    ),
                ),
                ("unit", models.CharField(max_length=204)),
                ("count", models.BigIntegerField()),
                ("total", registry.serving.experiments.models.ExactField(decimal_places=500, max_digits=1000)),
                ("squares", registry.serving.experiments.models.ExactField(decimal_places=500, max_digits=1000)),
                (
                    "variant",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="serving.variant",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=["holder", "measure", "variant", "part", "unit"], name="running_sum_once"
                    )
                ],
            },
        ),
    ]
