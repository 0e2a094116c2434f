"""The dashboard's kinds of panels."""

from collections.abc import Mapping
from string import ascii_uppercase

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel


def thresholds(colour: str, *steps: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """Return the colours of values: the first one up to the first step."""
    listed = [model.Threshold(value=None, color=colour), *(model.Threshold(value=value, color=step) for value, step in steps)]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(listed)


def query(name: str, expression: str) -> prometheus.Dataquery:
    """Return a query with a name of its own in its panel."""
    return prometheus.Dataquery().ref_id(name).expr(expression).legend_format("{{run}}")


def last_known() -> common.ReduceDataOptions:
    """Return that a panel with one value for each run shows the last one that there is."""
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def number(expression: str, unit: str, missing: str = "none") -> stat.Panel:
    """Return a panel with the present value."""
    return (
        stat.Panel()
        .with_target(query("A", expression).instant())
        .unit(unit)
        .no_value(missing)
        .reduce_options(last_known())
        .graph_mode(shapes.BigValueGraphMode.NONE)
        .color_mode(shapes.BigValueColorMode.VALUE)
        .thresholds(thresholds("text"))
    )


def curves(unit: str, queries: Mapping[str, str], *, log: bool = False) -> timeseries.Panel:
    """Return a panel with curves over time, of expressions by legend."""
    legend = common.VizLegendOptions().show_legend(True).display_mode(shapes.LegendDisplayMode.LIST)  # noqa: FBT003
    legend = legend.placement(shapes.LegendPlacement.BOTTOM).calcs(["lastNotNull"])
    tooltip = common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING)
    palette = dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC)
    panel = timeseries.Panel().unit(unit).legend(legend).tooltip(tooltip).color_scheme(palette)
    panel = panel.line_width(1.5).fill_opacity(0).show_points(shapes.VisibilityMode.AUTO)
    dashes = model.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
    # Told apart without colours too.
    panel = panel.override_by_regexp("/validation/", [dashes])
    if log:
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(shapes.ScaleDistribution.LOG).log(10))
    for name, (legend_format, expression) in zip(ascii_uppercase, queries.items(), strict=False):
        panel = panel.with_target(query(name, expression).legend_format(legend_format).range())
    return panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Return the panel with its curves on top of each other."""
    return panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL)).fill_opacity(40)


def bars(expression: str, missing: str) -> bargauge.Panel:
    """Return a panel with the last known share of each run, from 0 to 1, as a bar."""
    panel = bargauge.Panel().with_target(query("A", expression).range()).unit("percentunit").min(0).max(1).no_value(missing)
    panel = panel.display_mode(shapes.BarGaugeDisplayMode.BASIC).orientation(shapes.VizOrientation.HORIZONTAL)
    return panel.reduce_options(last_known()).thresholds(thresholds("blue"))


def listing(expression: str, columns: Mapping[str, str]) -> table.Panel:
    """Return a panel with a row for each series, whose value is a time; the columns in this order, with their titles by label."""
    tidy = {
        "excludeByName": {"Time": True},
        "indexByName": {name: place for place, name in enumerate(columns)},
        "renameByName": dict(columns),
    }
    panel = table.Panel().with_target(query("A", expression).instant().format(PromQueryFormat.TABLE))
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=tidy))
    return panel.override_by_name(columns["Value"], [model.DynamicConfigValue(id_val="unit", value="dateTimeAsIso")])


def limited(panel: timeseries.Panel, limit: float) -> timeseries.Panel:
    """Return the panel with a line where the alert begins."""
    style = common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(thresholds("transparent", (limit, "orange"))).thresholds_style(style)
