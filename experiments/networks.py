"""The two architectures of the experiments: residual with BatchNorm, and plain without."""

from deevo_ext.networks.small_resnet import SmallResNet
from deevo_ext.networks.small_vgg import SmallVGG

ARCHITECTURES = {"resnet": SmallResNet, "vgg": SmallVGG}
