"Rules × fills × shapes × kinds of images: outside of the mask nothing changes, and the area is what was asked"
import cv2, pytest, torch
from hypothesis import HealthCheck, assume, given as each, settings, strategies as st
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.loaders import ImageStats
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.masking.donors import choose_donor, donors
from proxy_attention.masking.fills import fills
from proxy_attention.masking.rules import otsu, rest_of_otsu, rules
from proxy_attention.proxy.selection import choose
from proxy_attention.proxy.serving import Proxies

settings.register_profile('few', max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile('few')
sides = st.integers(1, 150)
seeds = st.integers(0, 2**31)
args = dict(absolute=dict(threshold=.3), top_cells=dict(cells=3), mean_std=dict(k=.5))

def image(kind, size, seed):
    rng = np.random.default_rng(seed)
    h,w = size
    if kind=='float': return torch.from_numpy(rng.random((3,h,w), dtype=np.float32))
    if kind=='uint8': return TensorImage(torch.from_numpy(rng.integers(0, 256, (3,h,w), dtype=np.uint8)))
    if kind=='I;16': return Image.fromarray(rng.integers(0, 65536, (h,w), dtype=np.uint16))
    return Image.fromarray(rng.integers(0, 256, (h,w) if kind=='L' else (h,w,len(kind)), dtype=np.uint8))

def planes(img):
    return (img.as_subclass(Tensor).double() if isinstance(img, Tensor)
        else torch.from_numpy(np.atleast_3d(np.asarray(img)).astype(np.float64)).permute(2,0,1))

def test_a_tensor_image_stays_one_with_its_metadata():
    img = TensorImage(torch.rand(3,16,16))
    img.note = 'kept'
    new = Masker('everything', 'zero')(img, torch.rand(2,2))
    assert type(new) is TensorImage and new.note=='kept' and not new.any()
    new.note = 'changed'
    assert img.note=='kept'

@pytest.mark.parametrize('kind', ['RGB','L','RGBA','I;16','uint8','float'])
@pytest.mark.parametrize('fill', list(fills))
@each(rule=st.sampled_from(list(rules)), h=sides, w=sides, gh=st.integers(1,14), gw=st.integers(1,14),
    edge=st.sampled_from([0.,.1]), seed=seeds)
def test_outside_of_the_mask_nothing_changes(kind, fill, rule, h, w, gh, gw, edge, seed):
    img,other = image(kind, (h,w), seed), image(kind, (h,w), seed+1)
    heat = torch.rand(gh, gw, generator=torch.Generator().manual_seed(seed))
    m = Masker(rule, fill, edge=edge, **args.get(rule, {}))
    draws = lambda: torch.Generator().manual_seed(0)
    theirs = torch.rand(gh, gw, generator=draws()) if fill=='move' else None
    make = lambda o,b: m(o, heat, b, ImageStats.of([img]), draws(), theirs)
    rng = draws()
    if theirs is not None: m.drawn(theirs, (h,w), rng=rng) # the donor's mask is drawn first
    res,mask = make(img, other), m.mask_over(heat, (h,w), rng=rng)
    assert (type(res) is type(img) and getattr(res, 'mode', 0)==getattr(img, 'mode', 0) if not isinstance(img, Tensor)
        else res.dtype==img.dtype)
    a,b = planes(img), planes(res)
    assert a.shape==b.shape and torch.equal(a[:,~mask], b[:,~mask]) and torch.isfinite(b).all()
    assert b.min()>=0 and b.max()<=(65535 if kind=='I;16' else 1 if kind=='float' else 255)
    if fill=='swap' and not edge: assert torch.equal(b[:,mask], planes(other)[:,mask])
    if not isinstance(img, Tensor): # a PIL image and its tensor agree to the rounding
        t = make(a.float(), planes(other).float()).double()
        assert (t-b).abs().max() <= (1.51 if fill=='move' else 1.01 if fill in ('swap','erase') and edge else .51) + 1e-3*(kind=='I;16')

@each(area=st.floats(.001, .4), h=st.integers(2,300), w=st.integers(2,300), g=st.integers(2,16), seed=seeds)
def test_area_is_what_was_asked(area, h, w, g, seed):
    heat = torch.rand(2, g, g, generator=torch.Generator().manual_seed(seed))
    for rule in ('area','random','centre'):
        drawn = Masker(rule, area=area).drawn(heat, (h,w))
        n = drawn.shape[-2]*drawn.shape[-1]
        assert drawn.shape[-2:]==(min(h,128), min(w,128))
        assert ((drawn.sum((1,2))-max(1, round(area*n))).abs()<=1).all() # the coldest pixel is never taken
        if h<=128 and w<=128: assert torch.equal(Masker(rule, area=area).mask_over(heat, (h,w)), drawn)

@each(rule=st.sampled_from(list(rules)), least=st.floats(0, .3), more=st.floats(.05, .5),
    h=st.integers(8,128), w=st.integers(8,128), g=st.integers(2,14), seed=seeds)
def test_bounds_of_the_area_are_kept(rule, least, more, h, w, g, seed):
    most,o = 1. if hasattr(rules[rule], 'most') else least+more, rules[rule]
    if not (getattr(o, 'by_heat', True) and getattr(o, 'hot', True)): least = 0. # it is refused there
    heat = torch.rand(3, g, g, generator=torch.Generator().manual_seed(seed))
    mask = Masker(rule, max_area=min(1,most), min_area=least,
        **(dict(area=min(.1,most)) if rule in ('area','random','centre') else args.get(rule, {}))).drawn(heat, (h,w))
    n = mask.shape[-2]*mask.shape[-1]
    assert (mask.sum((1,2))>=min(n-1, round(least*n))).all() and (mask.sum((1,2))<=max(1, round(most*n))).all()

@each(rule=st.sampled_from(list(rules)), seed=seeds)
def test_a_batch_is_its_images(rule, seed):
    heat = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(seed))
    m = Masker(rule, **args.get(rule, {}))
    assert torch.equal(m.drawn(heat, (40,50)), torch.stack([m.drawn(o, (40,50)) for o in heat]))

@each(h=st.integers(129,400), w=st.integers(129,400), seed=seeds)
def test_kept_masks_are_those_drawn_anew(h, w, seed):
    store = HeatmapStore(range(3), torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(seed)))
    for fill in ('swap','swap_both','mean'):
        kept,new = (Proxies(store, Masker(fill=fill), size=o) for o in ((h,w),None))
        assert len(kept.bits)==3 and not len(new.bits)
        img,other = image('RGB', (h,w), seed), image('RGB', (h,w), seed+1)
        (a,*said),(b,*again) = (o.make(img, 1, lambda: (2,other)) for o in (kept,new))
        assert np.array_equal(np.asarray(a), np.asarray(b)) and said==again and said[1]==(-1 if fill=='mean' else 2)

@each(h=st.integers(20,200), w=st.integers(20,200), seed=seeds)
def test_swap_both_takes_the_places_of_both(h, w, seed):
    "Where either of the two was looked at there is the other image, and the image itself everywhere else"
    store = HeatmapStore([3,5], torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(seed)))
    m,img,other = Masker(fill='swap_both'),image('RGB', (h,w), seed),image('RGB', (h,w), seed+1)
    here,there = (m.mask_over(store.at(i), (h,w)) for i in (0,1))
    for j,mask in ((5,here|there), (4,here)): # an item that has no heat gives its pixels alone
        res,area,donor,_ = Proxies(store, m).make(img, 3, lambda: (j,other))
        assert donor==j and area==pytest.approx(mask.float().mean().item(), abs=1e-6)
        res = planes(res)
        assert torch.equal(res[:,mask], planes(other)[:,mask]) and torch.equal(res[:,~mask], planes(img)[:,~mask])
    x,y = planes(img).float(),planes(other).float()
    assert torch.equal(Proxies(store, m).make(x, 3, lambda: (5,y))[0], torch.where(here|there, y, x))

def test_a_donor_of_another_size_and_mode():
    heat,img = torch.rand(4,4), image('RGB', (40,60), 0)
    for other in (image('L', (31,90), 1), image('RGBA', (40,60), 1), image('RGB', (7,5), 1)):
        res,want = Masker(max_area=1, area=1.)(img, heat, other), other.convert('RGB').resize((60,40), Image.BILINEAR)
        mask = Masker(max_area=1, area=1.).mask_over(heat, (40,60))
        assert torch.equal(planes(res)[:,mask], planes(want)[:,mask])
    Masker()(torch.rand(3,40,60), heat, torch.rand(3,20,20))
    with pytest.raises(ValueError, match='needs `other`'): Masker()(torch.rand(3,40,60), heat, torch.rand(1,40,60))
    with pytest.raises(ValueError, match='needs `other`'): Masker()(img, heat)

def test_a_fill_that_draws_is_drawn_anew_each_epoch_and_the_same_in_any_worker():
    store,img = HeatmapStore([4], torch.rand(1,4,4)), image('RGB', (30,30), 0)
    for fill in ('noise','shuffle'):
        def made(epoch):
            p = Proxies(store, Masker(fill=fill))
            p.draw(epoch)
            return np.asarray(p.make(img, 4)[0]).tolist()
        assert made(1)==made(1)!=made(2)

@pytest.mark.parametrize('p', [0., .05, .5, 1.])
def test_p_and_share_are_met_in_the_long_run(p):
    store = HeatmapStore(range(400), torch.rand(400,2,2))
    proxies = Proxies(store, Masker(), p=p)
    n = np.array([len(proxies.draw(s)) for s in range(200)])
    assert abs(n.mean()-400*p) <= 4*np.sqrt(400*p*(1-p)/200)
    assert n.std()>0 or p in (0,1)
    for share in (.1, .333, 7, 1.):
        assert len(choose('random', torch.rand(100), share=share))==(round(share*100) if isinstance(share, float) else share)

def test_random_place_is_another_place():
    "As much, and on average no nearer to the heat than chance"
    heat = torch.rand(300, 5, 5, generator=torch.Generator().manual_seed(1))
    hot,moved = (Masker(o, area=.1).drawn(heat, (60,60)) for o in ('area','random'))
    overlap = ((hot&moved).sum((1,2))/hot.sum((1,2))).mean()
    assert .06<overlap<.14

@each(h=st.integers(2,150), w=st.integers(2,150), seed=seeds)
def test_otsu_is_that_of_opencv(h, w, seed):
    heat = (torch.rand(h, w, generator=torch.Generator().manual_seed(seed))**3*255).round().byte()
    assume(heat.amin()<heat.amax())
    cut = cv2.threshold(heat.numpy(), 0, 255, cv2.THRESH_OTSU)[0]
    hot = otsu(heat.float()/255)
    assert torch.equal(hot, heat>cut) and torch.equal(rest_of_otsu(heat.float()/255), ~hot)
    assert not (rest_of_otsu(heat.float()/255, margin=.1) & hot).any()

def test_a_flat_map_masks_nothing():
    "Nowhere is hotter than elsewhere, so no place is named"
    for o in ('area','top_cells','otsu','rest_of_otsu','random'):
        assert not Masker(o, **args.get(o, {})).drawn(torch.full((2,5,5), .5), (40,40)).any()

def test_numbers_are_those_of_all_items_where_some_losses_are_not_finite():
    losses = torch.tensor([torch.nan, 1., 5., torch.inf, 2.])
    with pytest.warns(ProxyWarning, match='2 of 5 training losses are NaN or infinite'):
        assert choose('top_losses', losses, share=2).tolist()==[2,4]

def test_where_a_strategy_names_no_donor_it_is_any_other_item():
    rng = random.Random(0)
    assert {choose_donor(lambda i: None, 1, 4, rng) for _ in range(100)}=={0,2,3}
    assert {choose_donor(donors['previous'], 1, 4, rng) for _ in range(100)}=={0,2,3} # nothing was read before

@pytest.mark.parametrize('rule', ['rest','rest_of_otsu','border','everything','random','random_rest','centre','box'])
def test_a_least_area_is_refused_where_others_than_the_hottest_pixels_are_masked(rule):
    with pytest.raises(ValueError, match='min_area=0.12 enlarges masks to the hottest pixels'): Masker(rule, min_area=.12)

def test_a_schedule_can_change_the_bounds_and_the_edge():
    m = Masker('area', area=.1, min_area=.05)
    assert m.having(max_area=.3, edge=.1).max_area==.3 and m.having(edge=.1).edge==.1 and m.having(min_area=.01).min_area==.01
    new = m.having(rule='rest', keep=.2)
    assert (new.max_area,new.min_area)==(1.,0.)

def test_a_batch_is_filled_as_its_images_are():
    torch.manual_seed(0)
    img,other,mask,theirs = torch.rand(3,3,16,16),torch.rand(3,3,20,24),torch.rand(3,16,16)>.9,torch.rand(3,16,16)>.9
    for fill in ('swap','move','swap_theirs'):
        m = Masker('area', fill)
        one = [m.fill_in(*o[:2], other=o[2], theirs=o[3]) for o in zip(img, mask, other, theirs)]
        assert torch.allclose(m.fill_in(img, mask, other=other, theirs=theirs), torch.stack(one), atol=1e-6)
