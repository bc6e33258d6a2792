"What a close reading of `attribution` and `interpret` found, each with a test that failed then"
from functools import partial
from contextlib import suppress
import pytest, torch
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.finer import Smoothed
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.attribution.methods import as_attribution
from proxy_attention.attribution.targets import Index, Margin, Region

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')

def small_net(c_in=3, n_out=4):
    "Two convolutions and a head"
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(c_in, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out)).eval()

# ---- attribution

@pytest.mark.parametrize('how', ['GradCAM','LayerCAM','Saliency'])
@pytest.mark.parametrize('target', ['label','tensor'])
def test_labels_from_inference_mode(how, target):
    "Labels and indices made there can be explained, as images can"
    x,y,net = torch.randn(2,3,16,16),torch.tensor([1,2]),small_net()
    made = as_attribution(how)
    should = made(net, target='label')(x, y)
    with torch.inference_mode():
        i = y+0
        heat = made(net, target='label')(x+0, i) if target=='label' else made(net, target=i)(x+0)
    assert i.is_inference() and torch.equal(heat, should)

def test_a_captum_method_finds_its_layer_for_each_image_size():
    "The layer of 64×64 images is not kept for those of 224×224; one that is given is"
    import timm
    net = timm.create_model('resnet10t', num_classes=4).eval()
    xs = [torch.randn(1,3,o,o) for o in (64,224)]
    layers = [find_layer(net, x).module for x in xs]
    attr = as_attribution('GuidedGradCam')(net, target='pred')
    found = []
    for x in xs: found.append(attr(x) is None or attr.layer)
    assert layers[0] is not layers[1] and found[0] is layers[0] and found[1] is layers[1]
    asked = as_attribution('GuidedGradCam')(net, layer='layer2', target='pred')
    for x in xs: assert asked(x) is None or asked.layer is net.layer2

def test_a_suspect_is_the_whole_module():
    "Also if a part of it is called `model`, as in many wrappers"
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model,self.head = small_net(n_out=8),nn.Linear(8, 2)
        def forward(self, x): return self.head(self.model(x))
    net,x = Wrapped().eval(),torch.rand(2,3,16,16)
    suspect = Suspect(net, 'GradCAM')
    assert isinstance(suspect.model, Wrapped)
    assert torch.equal(suspect(small_net(), target=1)(x), GradCAM(net, target=1)(x))

def test_smoothed_moves_labels_of_pixels():
    "A mirrored view has mirrored labels, so the heat of a mirrored image is the mirrored heat"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    x,y = torch.rand(1,3,16,16),torch.zeros(1,16,16, dtype=torch.long)
    y[:,:,:5] = 1
    seen = []
    class Seen(Region):
        def fix(self, out, yb=None):
            seen.append(yb)
            return super().fix(out, yb)
    Smoothed(net, layer='3', target=Seen(1, 'label'), of='GradCAM')(x, y)
    assert torch.equal(seen[0], y) and torch.equal(seen[1], y.flip(2))
    points = torch.rand(1,3,2)
    Smoothed(small_net(), target=lambda out,yb: seen.append(yb) or out[:,0], of='GradCAM')(x, points)
    assert torch.equal(seen[-1], points) # only labels of pixels have a place in the image

def test_a_damaged_store_is_told(tmp_path):
    "A file that was cut off, or that has lost bytes, is no store: a sentence says so"
    file = HeatmapStore([1,2], torch.rand(2,7,7)).save(tmp_path/'heat.npz')
    whole = file.read_bytes()
    for n in (10, 100, len(whole)//2, len(whole)-5):
        file.write_bytes(whole[:n])
        with pytest.raises(ValueError, match='is not a heatmap store'): HeatmapStore.load(file)
    for i in range(0, len(whole), 11):
        file.write_bytes(whole[:i]+bytes([whole[i]^255])+whole[i+1:])
        with suppress(ValueError): HeatmapStore.load(file)

def test_which_targets_ask_for_labels():
    from proxy_attention.attribution.targets import asks_labels
    for o in ('label', Margin('label'), Region(of='label')): assert asks_labels(o)
    for o in ('pred', 'margin', 'finer', 3, torch.tensor([1,2]), Index(1), Margin(), Region(2), lambda out,yb: out[:,0]): assert not asks_labels(o)
