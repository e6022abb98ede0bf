"""Bandits of up to ten arms: C, D, … are rows. Those there are keep A, B and the floor of 5 % that they have always had."""

import django.db.models.deletion
from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Q


def name_promoted(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Until now nobody but B could be."""
    apps.get_model("serving", "Experiment").objects.filter(state="promoted").update(promoted="b")


class Migration(migrations.Migration):
    dependencies = [("registry", "0009_optimizations"), ("serving", "0016_indexes_of_records")]

    operations = [
        migrations.AddField(
            model_name="experiment",
            name="floor",
            field=models.FloatField(
                default=0.05, help_text="Of a bandit: each version's share of the traffic is at least this"
            ),
        ),
        migrations.AddField(
            model_name="experiment",
            name="promoted",
            field=models.CharField(
                blank=True, help_text="The arm that answers alone since: b, c, …", max_length=1
            ),
        ),
        migrations.AlterField(
            model_name="experiment",
            name="share",
            field=models.FloatField(
                default=0.5,
                help_text="B's share of the units, between 0 and 1; of a bandit the first one of each beside A",
            ),
        ),
        migrations.AddConstraint(
            model_name="experiment",
            constraint=models.CheckConstraint(condition=Q(floor__gt=0, floor__lte=0.5), name="ab_floor_is_a_share"),
        ),
        migrations.CreateModel(
            name="FurtherArm",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("position", models.PositiveSmallIntegerField(help_text="2 is C, 3 is D, …")),
                (
                    "experiment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="further", to="serving.experiment"
                    ),
                ),
                (
                    "variant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="serving.variant"
                    ),
                ),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="registry.modelversion"
                    ),
                ),
            ],
            options={
                "ordering": ["position"],
                "constraints": [
                    models.UniqueConstraint(fields=["experiment", "position"], name="further_arm_once"),
                    models.UniqueConstraint(fields=["experiment", "version"], name="further_arm_version_once"),
                    models.CheckConstraint(
                        condition=Q(position__gte=2, position__lt=10), name="further_arm_has_a_letter"
                    ),
                ],
            },
        ),
        migrations.RunPython(name_promoted, migrations.RunPython.noop),
    ]
