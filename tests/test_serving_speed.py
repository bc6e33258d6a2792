"What makes serving cheap changes nothing that is served"
import pytest, torch
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.masking.fills import erase, erased, move, moved, soften
from proxy_attention.masking.labels import by_heat
from proxy_attention.masking.masker import pack_mask
from proxy_attention.masking.rules import bound_area
from proxy_attention.proxy import callback, serving as room
from proxy_attention.proxy.serving import Proxies, serving

def draws(seed): return torch.Generator().manual_seed(seed)
def picture(mode, h, w, seed):
    a = torch.randint(256, (h,w,4), generator=draws(seed)).byte().numpy()
    return Image.fromarray(a[...,0] if mode=='L' else a[...,:len(mode)], mode)
def planes(img): return torch.from_numpy(np.array(img)).view(*img.size[::-1], -1).permute(2,0,1)

@pytest.mark.parametrize('h,w,edge', [(128,128,.05), (40,90,.2), (17,9,.5), (1,8,.1)])
def test_soft_edges_are_means_over_squares(h, w, edge):
    "The same bits as an average over the square around each pixel, which takes many times as long"
    mask = torch.rand(3, h, w, generator=draws(0))>.3
    mask[:,h//4:h//2+1] = True
    r,m = max(1, round(edge*min(h, w))),mask.float()[:,None]
    soft = (2*F.avg_pool2d(m, 2*r+1, 1, r, count_include_pad=False)-1).clamp(min=0)*m
    top = soft.amax((-2,-1), keepdim=True)
    want = (torch.where(top>0, soft/top.clamp(min=1e-6), m)*255).round()/255
    assert torch.equal(soften(mask, edge), want[:,0]) and torch.equal(soften(mask[1], edge), want[1,0])

@pytest.mark.parametrize('mode', ['L','RGB','RGBA'])
def test_a_piece_moves_alike_in_both_kinds_of_image(mode):
    "Each channel by itself, alpha too; between frames of any size"
    img,other = (picture(mode, 30, 40, o) for o in (1,2))
    mask,theirs = torch.zeros(30,40, dtype=torch.bool),torch.zeros(15,20, dtype=torch.bool)
    mask[3:20,5:33],theirs[2:9,4:8] = True,True
    new = planes(moved(img, pack_mask(mask), other, pack_mask(theirs))).float()
    want = move(planes(img), mask, planes(other), theirs)
    assert (new-want)[:,mask].abs().max()<=1.51
    empty = pack_mask(torch.zeros(4,4, dtype=torch.bool))
    assert moved(img, empty, other, pack_mask(theirs)) is other and moved(img, pack_mask(mask), other, empty) is other

@pytest.mark.parametrize('mode', ['L','RGB','RGBA'])
def test_a_rectangle_is_erased_alike_in_both_kinds_of_image(mode):
    changed = 0
    for seed in range(5):
        img = picture(mode, 24, 31, seed)
        new,want = planes(erased(img, draws(seed))).float(),erase(planes(img), draws(seed)).round()
        assert (new-want).abs().max()<=1 and (new!=want).float().mean()<.01 # both round, one from more digits
        changed += (new!=planes(img)).any(0).float().mean()/5
    assert .02<changed<.3
    tiny = picture(mode, 1, 1, 0)
    assert planes(erased(tiny, draws(0))).equal(planes(tiny))

def test_bounds_that_bind_nothing():
    mask,heat = torch.rand(2,9,9, generator=draws(0))>.5,torch.rand(2,9,9, generator=draws(1))
    assert bound_area(mask, heat, 0., 1.) is mask
    assert bound_area(mask, heat, 0., .1).float().mean()<.15 and bound_area(mask, heat, .9, 1.).float().mean()>.85

def test_shares_of_heat_by_hand():
    "One mask for both, and a mask of the donor's own"
    heat,other = torch.tensor([[1.,0.],[0.,3.]]),torch.tensor([[2.,2.],[0.,0.]])
    mask,theirs = torch.zeros(8,8, dtype=torch.bool),torch.zeros(8,8, dtype=torch.bool)
    mask[:4,:4],theirs[:2] = True,True
    assert by_heat(mask, heat, mask, other)==pytest.approx((.75,.5)) and by_heat(mask, heat, theirs, other)==pytest.approx((.75,.5))
    assert by_heat(mask, heat, theirs, heat)==pytest.approx((.75,.125)) and by_heat(mask, heat, theirs, None)==pytest.approx((.75,.25))

class Dark(Transform):
    "An item transform that works in place"
    order = 1
    def encodes(self, x:PILImage):
        x.paste((0,0,0), (0,0,*x.size))
        return x

@pytest.mark.parametrize('own', [False,True])
def test_donors_are_copied_where_a_transform_may_paint_on_them(tmp_path, monkeypatch, own):
    "Fastai's item transforms leave a PIL image as it is; of anybody else's nothing is known"
    for i in range(8):
        (tmp_path/str(i%2)).mkdir(exist_ok=True)
        picture('RGB', 16, 16, i).save(tmp_path/str(i%2)/f'{i}.png')
    set_seed(0)
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.25, seed=0, item_tfms=[Resize(16, method='squish'), *([Dark()] if own else [])],
                                       bs=8, num_workers=0, drop_last=False)
    n,copies = len(dls.train_ds),[]
    plain = [np.array(img) for img,_ in dls.train_ds]
    seen = []
    def pasted(other):
        seen.append(np.array(other))
        return other
    def fill(other): return other
    fill.pasted = pasted
    def counted(img):
        copies.append(img)
        return img.copy()
    proxies = Proxies(HeatmapStore(range(n//2), torch.rand(n//2,4,4)), Masker(fill=fill))
    monkeypatch.setattr(room, '_copy', counted)
    with serving(dls.train, proxies):
        for _ in dls.train: pass
    assert len(seen)==n//2 and all(any(np.array_equal(o, p) for p in plain) for o in seen)
    assert len(copies)==(n-n//2 if own else 0)

@pytest.mark.parametrize('name', ['keep','vitamin','snapmix','saliencymix','attentive_cutmix'])
def test_a_step_goes_through_the_images_once(few, monkeypatch, name):
    "A recipe that renews heat takes its losses from training: in a step each training image passes the network once, and no other does"
    steps,make = [],callback.make_step
    def watched(cb, *args):
        net = cb.learn.model
        steps.append(0)
        def count(module, inputs): steps[-1] += len(inputs[0])
        hook = net.register_forward_pre_hook(count)
        try: make(cb, *args)
        finally: hook.remove()
    monkeypatch.setattr(callback, 'make_step', watched)
    learn = digits_learner(few)
    with learn.no_bar(), learn.no_logging(): recipes[name].train(learn, 4, 1e-3, callback=dict(every=2))
    assert steps==[len(learn.dls.train_ds)]*2
