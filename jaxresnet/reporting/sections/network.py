"""The section with the picture of the network."""

from jaxresnet.network.describe import LayerInfo
from jaxresnet.plan import Plan
from jaxresnet.reporting.figures.architecture import architecture, stacked_architecture
from jaxresnet.reporting.figures.drawing import picture
from jaxresnet.reporting.page import Section
from jaxresnet.reporting.sections.paper import is_papers_network, like_figure


def network_section(plan: Plan, layers: list[LayerInfo]) -> Section:
    """The network of `plan`, drawn from its `layers`, and the names of its modules."""
    papers = (
        " It is that of the paper's Figure 3." if is_papers_network(plan) else like_figure(plan, "Figure 3")
    )
    drawn = picture(
        "architecture.png",
        "Height: size of the maps. Width: channels. Arcs: shortcuts, dashed where they are convolutions.",
        lambda: architecture(layers),
        lambda: stacked_architecture(layers),
    )
    return Section(
        "The network",
        f"Drawn from the network itself.{papers}",
        pictures=[drawn],
        remark="Stage 1 is layer1 in exported weights, with the blocks layer1.0, layer1.1 and so on. In the network's "
        "variables and in checkpoints the same blocks are stage0_block0, stage0_block1 and so on.",
    )
