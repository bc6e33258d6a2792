"""Attribution against pytorch-grad-cam, captum and torchcam: time, memory, agreement.

`python benchmarks/attribution.py` writes `benchmarks/attribution.csv` (time and memory) and,
where `--cifar` finds the trained ResNet-20, `benchmarks/agreement.csv`.
All ways of one case take turns within one process, so a ratio compares like with like; figures are medians."""
import contextlib, copy, ctypes, io, statistics, time, warnings, zipfile
from importlib.metadata import version
from pathlib import Path
import numpy as np, pandas as pd, torch, torch.nn.functional as F
from torch import nn
from fastcore.script import call_parse
warnings.simplefilter('ignore')
import captum.attr, timm, torchcam.methods, pytorch_grad_cam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from proxy_attention.all import *
from proxy_attention.attribution.cams import half_type
from proxy_attention.attribution.layers import can_go_last
from proxy_attention.attribution.heatmap import agreement, normalize_heat, resize_heat
from proxy_attention.attribution.methods import attributions, captum_methods
from proxy_attention.interpret.metrics import iou
from bench_tables import keep_table

here = Path(__file__).parent
gradient = [GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM, EigenCAM, EigenGradCAM, FinerCAM]

def tokens(grid): return lambda t: t[:,t.shape[1]-grid[0]*grid[1]:].unflatten(1, grid).permute(0,3,1,2)

def peer_pgc(how, model, layer):
    "pytorch-grad-cam on the same layer, its progress bars silenced, its batch sizes as they come"
    cam = getattr(pytorch_grad_cam, how)(
        model=model, target_layers=[layer.module], reshape_transform=tokens(layer.grid) if layer.kind=='tokens' else None)
    def run(x, y):
        with contextlib.redirect_stderr(io.StringIO()):
            return torch.from_numpy(cam(input_tensor=x, targets=[ClassifierOutputTarget(int(i)) for i in y]))
    return run

def peer_captum(model, layer): 
    cam = captum.attr.LayerGradCam(model, layer.module)
    return lambda x,y: cam.attribute(x, y, relu_attributions=True)[:,0].detach()

def peer_torchcam(how, model, layer, **kw):
    def run(x, y):
        with getattr(torchcam.methods, how)(model, layer.module, **kw) as cam: return cam(y.tolist(), model(x))[0].detach()
    return run

def peak(device, f):
    "Most memory in use while `f` runs, over what was in use before, in MB"
    if device=='cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        f()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated()-before)/1e6
    status = lambda k: int(next(o for o in open('/proc/self/status') if o.startswith(k)).split()[1])/1e3
    ctypes.CDLL(None).malloc_trim(0) # give back what earlier runs have freed
    try: Path('/proc/self/clear_refs').write_text('5') # and let the high-water mark start anew
    except OSError: return float('nan')
    before = status('VmRSS')
    f()
    return max(0, status('VmHWM')-before)

last = 'forward, channels last'

def clock(ways, x, y, rounds, device, base='forward'):
    "Median seconds of each way, all taking turns; as ratios of a forward pass, as it comes and channels last"
    secs,mem = {k:[] for k in ways},{}
    for k,f in ways.items(): mem[k] = (f(x, y), peak(device, lambda: f(x, y)))[1] # the first run warms up
    for _ in range(rounds):
        for k,f in ways.items():
            if device=='cuda': torch.cuda.synchronize()
            began = time.perf_counter()
            f(x, y)
            if device=='cuda': torch.cuda.synchronize()
            secs[k].append(time.perf_counter()-began)
    med = {k:statistics.median(o) for k,o in secs.items()}
    return [dict(way=k, seconds=med[k], fastest=min(secs[k]), slowest=max(secs[k]), ratio=med[k]/med[base],
                 ratio_last=med[k]/med[last] if last in med else float('nan'), images_per_second=len(x)/med[k], peak_mb=mem[k])
            for k in ways]

def plain(model, last=False):
    "A forward pass without gradients; `last`: images and weights channels last"
    if last: model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    def f(x, y):
        with torch.no_grad(): return model(x.contiguous(memory_format=torch.channels_last) if last else x)
    return f

def each_batch(how, model):
    "A context for every batch, in which the layer is not named"
    def f(x, y):
        with how(model, target='label') as attr: return attr(x, y)
    return f

def network(arch, bs, device, side):
    "A network, the layer that everyone looks at, and a batch of noise"
    torch.manual_seed(0)
    model = timm.create_model(arch).eval().to(device)
    x,y = torch.randn(bs,3,side,side, device=device), torch.arange(bs, device=device)%1000
    return model,find_layer(model, x),x,y

def case(arch, bs, rounds, device, side=224):
    "Gradient CAMs on one network and batch size"
    model,layer,x,y = network(arch, bs, device, side)
    ways = {last:plain(model, True)} if can_go_last(model, x) else {}
    ways |= {c.__name__:c(model, layer, target='label') for c in gradient}
    ways |= {f'{c.__name__}, a context per batch':each_batch(c, model) for c in (GradCAM,LayerCAM)}
    if half_type(device):
        ways |= {f'{c.__name__} fast':c(model, layer, target='label', fast=True) for c in (GradCAM,LayerCAM,EigenGradCAM)}
    ways |= {f'pytorch-grad-cam {o}':peer_pgc(o, model, layer) for o in ('GradCAM','GradCAMPlusPlus','EigenGradCAM')}
    if layer.kind=='nchw':
        ways |= {'captum LayerGradCam':peer_captum(model, layer), 'torchcam GradCAM':peer_torchcam('GradCAM', model, layer)}
    if layer.kind=='tokens': ways |= dict(AttentionRollout=AttentionRollout(model), LeGrad=LeGrad(model))
    return [dict(case='gradient', device=device, net=arch, batch=bs, **o)
            for o in clock(dict(forward=plain(model)) | ways, x, y, rounds, device)]

def perturbed(arch, bs, rounds, device, side=224):
    "Score-CAM and Ablation-CAM, all channels and the strongest few; captum's through our adapter"
    model,layer,x,y = network(arch, bs, device, side)
    ways = dict(forward=plain(model))
    for how in ('ScoreCAM','AblationCAM'):
        c = attributions[how]
        ways |= {how:c(model, layer, target='label'),
                 f'{how} 64 channels':c(model, layer, target='label', channels=64),
                 f'pytorch-grad-cam {how}':peer_pgc(how, model, layer)}
        if half_type(device): ways[f'{how} fast'] = c(model, layer, target='label', fast=True)
    ways |= {k:Captum(model, k, target='label') for k in captum_methods}
    ways['torchcam ScoreCAM'] = peer_torchcam('ScoreCAM', model, layer, batch_size=32)
    return [dict(case='many passes', device=device, net=arch, batch=bs, **o) for o in clock(ways, x, y, rounds, device)]

class Block(nn.Module):
    "A basic block whose shortcut is zero-padded (option A), as the checkpoint's"
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(i,o,3,stride,1,bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o,o,3,1,1,bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.stride,self.pad = stride,(o-i)//2
    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride>1: x = F.pad(x[:,:,::2,::2], (0,0,0,0,self.pad,self.pad))
        return F.relu(x+y)

class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1,self.bn1 = nn.Conv2d(3,16,3,1,1,bias=False),nn.BatchNorm2d(16)
        stage = lambda i,o,s: nn.Sequential(Block(i,o,s), Block(o,o,1), Block(o,o,1))
        self.layer1,self.layer2,self.layer3,self.linear = stage(16,16,1),stage(16,32,2),stage(32,64,2),nn.Linear(64,10)
    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2,3)))

def trained(shared, n):
    "The trained ResNet-20 and `n` test images"
    state = torch.load(shared/'resnet20_cifar10.th', weights_only=True, map_location='cpu')['state_dict']
    model = ResNet20().eval()
    model.load_state_dict({k.removeprefix('module.'):v for k,v in state.items()})
    from PIL import Image
    with zipfile.ZipFile(shared/'cifar10_jpg.zip') as z:
        names = sorted(o for o in z.namelist() if '/test/' in f'/{o}' and o.endswith('.jpg'))
        classes = sorted({Path(o).parent.name for o in names})
        names = names[::len(names)//n][:n]
        x = torch.stack([torch.from_numpy(np.array(Image.open(z.open(o)).convert('RGB'))) for o in names]).permute(0,3,1,2)/255
    mean,std = torch.tensor([.485,.456,.406])[:,None,None], torch.tensor([.229,.224,.225])[:,None,None]
    return model, (x-mean)/std, torch.tensor([classes.index(Path(o).parent.name) for o in names])

def agree(shared, n):
    "On a trained network: ours and theirs, full and half precision, all channels and few"
    model,x,y = trained(shared, n)
    with torch.no_grad(): right = (model(x).argmax(1)==y).float().mean().item()
    layer,rows = find_layer(model, x),[]
    print(f'ResNet-20 on {n} CIFAR-10 test images: {right:.1%} right; {layer}')
    pixels = lambda h: normalize_heat(resize_heat(h, (32,32)))
    def note(what, a, b):
        rank,iou = agreement(pixels(a), pixels(b) if b.shape[-1]!=32 else b)
        rows.append(dict(
            what=what, images=int((~rank.isnan()).sum()),
            rank_correlation=rank.nanmean().item(), lowest=rank.nan_to_num(1).min().item(), top_tenth_iou=iou.nanmean().item()))
    # predictions: where a label's score is negative, pytorch-grad-cam's AblationCAM is upside down
    with torch.no_grad(): z,pred = x[:32],model(x[:32]).argmax(1)
    for how in ('GradCAM','GradCAMPlusPlus','XGradCAM','HiResCAM','LayerCAM','EigenCAM','EigenGradCAM','ScoreCAM','AblationCAM'):
        note(f'{how} / pytorch-grad-cam', attributions[how](model, layer)(z, pred), peer_pgc(how, model, layer)(z, pred))
    for how in ('GradCAM','XGradCAM','LayerCAM','ScoreCAM','FinerCAM'):
        note(f'{how} / torchcam', attributions[how](model, layer, target='label')(z, pred),
             peer_torchcam(how, model, layer)(z, pred).nan_to_num(0))
    note('GradCAM / captum', GradCAM(model, layer)(z, pred), normalize_heat(peer_captum(model, layer)(z, pred)))
    # fixed, so that a prediction that half precision changes is not counted as another map
    with torch.no_grad(): every = model(x).argmax(1)
    for how in ('GradCAM','GradCAMPlusPlus','XGradCAM','HiResCAM','LayerCAM','EigenCAM','EigenGradCAM','FinerCAM','ScoreCAM','AblationCAM'):
        c = attributions[how]
        note(f'{how} fast / exact', c(model, layer, target=every, fast=True)(x), c(model, layer, target=every)(x))
    for how in (ScoreCAM, AblationCAM):
        full = how(model, layer, target='pred')(x)
        for k in (4, 8, 16, 32):
            note(f'{how.__name__} {k} of 64 channels / all', how(model, layer, target='pred', channels=k)(x), full)
    return pd.DataFrame(rows)

@call_parse
def main(
    rounds:int=9, # Turns each way takes
    threads:int=2, # CPU threads
    cifar:Path=here.parent.parent/'shared'/'data', # Folder of resnet20_cifar10.th and cifar10_jpg.zip
    images:int=256, # CIFAR-10 test images to compare on
    quick:bool=False, # One small case, to see that it runs
    only:str='', # 'time', 'perturb' or 'agree'; all by default
    device:str='', # 'cpu' or 'cuda'; both by default, where there is a GPU
    out:Path=here # Where the tables go
):
    "Measure attribution against its peers"
    torch.set_num_threads(threads)
    devices = [device] if device else ['cpu']+['cuda']*torch.cuda.is_available()
    cases = [(c,a,b) for c,a,b in (
                 (case,'resnet18',1), (case,'resnet18',16), (case,'resnet18',32),
                 (case,'convnext_tiny',8), (case,'vit_small_patch16_224',8), (perturbed,'resnet18',1))
             if not only or only==('time' if c is case else 'perturb')]
    if quick: cases = [(case,'resnet10t',2)]
    peers = ', '.join(f'{o} {version(o)}' for o in ('captum','grad-cam','torchcam'))
    rows = []
    for d in devices:
        for c,a,b in cases:
            print(pd.DataFrame(new := c(a, b, max(3, rounds//3) if c is perturbed else rounds, d))
                  .drop(columns=['device','fastest','slowest']).round(3).to_string(index=False), '\n', flush=True)
            rows += [o|dict(peers=peers) for o in new]
    if rows and not quick:
        f = out/'attribution.csv'
        if not (only or device): f.unlink(missing_ok=True) # all is measured anew
        keep_table(pd.DataFrame(rows).round(5), f, ['case','device','net','batch','way'])
    if quick or (only and only!='agree'): return
    if not (cifar/'resnet20_cifar10.th').exists():
        return print(f'{cifar} has no resnet20_cifar10.th: agreement on a trained network is not measured.')
    table = agree(cifar, images)
    print(table.round(4).to_string(index=False))
    table.round(5).to_csv(out/'agreement.csv', index=False)
