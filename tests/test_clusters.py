"Clusters of heatmaps: a planted one is found where it is, none is invented, and the probe and the report tell of it"
import random
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from sklearn.exceptions import ConvergenceWarning
from fastcore.xml import to_xml
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution import clusters
from proxy_attention.attribution.clusters import heat_clusters
from proxy_attention.attribution.concepts import concepts
from proxy_attention.attribution.cams import attributions
from proxy_attention.attribution.places import heat_place, usual_place, various_places
from proxy_attention.interpret.probe import Probe
from proxy_attention.report.look import Looked
from proxy_attention.report.sections import strategies

def cloud(n, seed=0, cells=8):
    "Noisy heatmaps of an object near the centre"
    rng = torch.Generator().manual_seed(seed)
    y,x = torch.meshgrid(*[(torch.arange(cells)+.5)/cells]*2, indexing='ij')
    at = torch.rand(n, 2, generator=rng)*.3+.35
    far = (y-at[:,:1,None])**2+(x-at[:,1:,None])**2
    return torch.exp(-far*25)+torch.rand(n, cells, cells, generator=rng)*.3

def horses(n=120, marked=20, seed=0, cells=8):
    "The same, but the first images have their heat at the bottom left"
    heat = cloud(n, seed, cells)
    heat[:marked] = torch.rand(marked, cells, cells, generator=torch.Generator().manual_seed(seed+1))*.3
    heat[:marked,cells*3//4:,:cells//4] += .8
    return heat

@pytest.mark.parametrize('seed', range(3))
def test_a_planted_cluster_is_found_and_the_other_class_stays_whole(seed):
    heat = torch.cat([horses(seed=seed), cloud(100, seed+9)])
    right = np.r_[np.ones(20), np.zeros(50), np.ones(150)].astype(bool)
    follows = np.r_[np.ones(20), np.full(20, np.nan), np.zeros(180)]
    c = heat_clusters(heat, [0]*120+[1]*100, ['horse','cat'], right, follows)
    assert c.df['class'].tolist()==['horse','horse','cat'] and c.df.n.tolist()==[100,20,100]
    assert c.of.tolist()==[1]*20+[0]*100+[2]*100 and sorted(c.members(1))==list(range(20)) and len(c.members(1, 3))==3
    o = c.df.loc[1]
    assert o.share==1/6 and o.place=='at the bottom left' and o.edge==1 and o.right==1 and o.follows==1
    assert c.df.right[0]==.5 and c.df.follows[0]==0 and c.df.stands_out.tolist()==[False,True,False]
    assert c.verdict()==c.sentence(1) and c.verdict(most=0)=='1 other cluster is not described here.' and c.sentence(1).startswith(
        "20 of the 120 images of 'horse' (17%) are a cluster of their own: they are hottest at the bottom left (100% of them), ")
    assert c.sentence(1).endswith('; 100% of them are predicted correctly (of the others: 50%); '
        '100% of their predictions follow a swap of the hottest part (of the others: 0%).')
    assert repr(c).startswith('HeatClusters of 220 images: 1 cluster beside the main ones. 20 of') and '<table' in c._repr_html_()
    assert c.found.index.tolist()==[0,1] and heat_place(c.maps[1])=='bottom left' and c.maps.shape==(3,8,8)

@pytest.mark.parametrize('cells', [4,7,28])
def test_any_number_of_cells(cells):
    c = heat_clusters(horses(cells=cells), [0]*120)
    assert c.df.n[c.df.stands_out].tolist()==[20] and set(c.of[:20])=={1}

def test_of_few_cells_none_stands_out():
    heat = torch.rand(100, 9, 3, generator=torch.Generator().manual_seed(0))*.3
    heat[30:,4,1] += 1.
    heat[:30,8,0] += 1.
    c = heat_clusters(heat, [0]*100)
    assert c.df.n.tolist()==[70,30] and not c.df.stands_out.any() and c.verdict()=='' and 'bottom left' in c.verdict(every=True)

def test_no_cluster_is_invented():
    "One cloud is one cluster, whatever its shape: round, long, at any place of the image, with heavy tails"
    found = []
    for seed in range(6):
        rng = torch.Generator().manual_seed(seed)
        shapes = [cloud(150, seed), torch.rand(80, 7, 7, generator=rng), torch.rand(60, 8, 8, generator=rng)**6]
        shapes.append(cloud(100, seed)+torch.rand(100, 1, 1, generator=rng)*torch.linspace(0, 1, 8))
        found += [len(heat_clusters(o, [0]*len(o)).df) for o in shapes]
    assert found==[1]*24

def test_a_cluster_in_a_shuffled_order_is_the_same():
    heat,to = horses(),torch.randperm(120, generator=torch.Generator().manual_seed(3))
    assert set(to[heat_clusters(heat[to], [0]*120).members(1)].tolist())==set(range(20))

def test_several_clusters_and_two_halves():
    heat = horses(150, 30)
    heat[30:60] = heat[:30].flip(1) # at the top left
    c = heat_clusters(heat, [0]*150)
    assert c.df.n[c.df.stands_out].tolist()==[30,30] and set(c.df.place[c.df.stands_out])=={'at the bottom left','at the top left'}
    assert [len(set(c.of[i:j])) for i,j in ((0,30),(30,60))]==[1,1]
    c = heat_clusters(horses(100, 50), [0]*100)
    assert c.df.n.tolist()==[50,50] and len(set(c.of[:50]))==1

def test_heatmaps_without_any_noise():
    heat = torch.zeros(60, 6, 6)
    heat[:,2:4,2:4] = 1.
    assert len(heat_clusters(heat, [0]*60).df)==1
    heat[:12] = 0.
    heat[:12,5,0] = 1.
    c = heat_clusters(heat, [0]*60)
    assert c.df.n.tolist()==[48,12] and c.df.stands_out[1] and np.isfinite(c.df.separation[1])

def test_many_images_of_a_class_are_assigned(monkeypatch):
    monkeypatch.setitem(clusters.clustering, 'many', 100)
    c = heat_clusters(horses(300, 60), [0]*300)
    assert c.df.n.tolist()==[240,60] and set(c.of[:60])=={1}

@pytest.mark.parametrize('n', [0,1,2,19])
def test_few_images_are_one_cluster(n):
    c = heat_clusters(horses(40)[:n], [0]*n, ['horse'])
    assert len(c.df)==min(n, 1) and c.verdict()=='' and len(c.of)==n and c.show() is None
    assert repr(c)==f'HeatClusters of {n} images: 0 clusters beside the main ones.'

def test_uninformative_heatmaps_belong_to_no_cluster():
    heat = horses()
    heat[100:105],heat[105:110],heat[110:] = 0.,np.nan,np.inf
    c = heat_clusters(heat, [0]*120)
    assert c.df.n.tolist()==[80,20] and (c.of[100:]==-1).all()
    for o in (torch.zeros(30,8,8), torch.full((30,8,8), np.nan), torch.rand(30,1,1)):
        c = heat_clusters(o, [0]*30)
        assert not len(c.df) and c.verdict()=='' and (c.of==-1).all() and c.show() is None

def test_labels_of_any_kind():
    heat = torch.cat([horses(), cloud(30)])
    for labels in (torch.tensor([4]*120+[7]*30), np.array(['horse']*120+['cat']*30), ['horse']*120+['cat']*30):
        assert heat_clusters(heat, labels, least=200).df.n.tolist()==([120,30] if torch.is_tensor(labels) else [30,120])
    c = heat_clusters(torch.rand(1000,4,4), torch.arange(1000))
    assert len(c.df)==1000 and c.verdict()==''

def test_wrong_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match='There are 5 heatmaps, but labels has 4 entries: give one each.'):
        heat_clusters(torch.rand(5,4,4), [0]*4)
    with pytest.raises(ValueError, match='5 heatmaps, but right has 6'): heat_clusters(torch.rand(5,4,4), [0]*5, right=[True]*6)
    with pytest.raises(TypeError, match=r'shape \(n, height, width\), but it is \(5, 4\)'): heat_clusters(torch.rand(5,4), [0]*5)
    with pytest.raises(ValueError, match='least=3'): heat_clusters(torch.rand(5,4,4), [0]*5, least=3)

def test_the_same_seed_gives_the_same_and_no_random_state_is_touched():
    heat = horses()
    before = torch.get_rng_state(),np.random.get_state()[1].copy(),random.getstate(),heat.clone()
    a,b = (heat_clusters(heat, [0]*120) for _ in range(2))
    pd.testing.assert_frame_equal(a.df, b.df)
    assert (a.of==b.of).all() and torch.equal(heat, before[3])
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1]==before[1]).all() and random.getstate()==before[2]

def test_usual_place():
    at = torch.zeros(10, 9, 9)
    at[:6,0,0] = at[6:,4,4] = 1.
    assert usual_place(at)==('at the top left',.6) and usual_place(at[6:])==('in the centre',1.)
    assert usual_place(at, often=.7)[0]==various_places
    ring = torch.zeros(4, 9, 9)
    for i,(y,x) in enumerate(((0,0),(0,8),(8,0),(8,8))): ring[i,y,x] = 1.
    assert usual_place(ring)==('at the edge',1.) and usual_place(at*0)==('nowhere in particular',0.)

def test_pictures():
    c = heat_clusters(horses(), [0]*120, ['a horse with a long name'])
    assert c.show().shape==(2,1)
    axs = c.show(lambda i: np.full((16,16,3), i, np.uint8), n=3)
    assert axs.shape==(2,4) and axs[0][0].texts[0].get_text()=='a hors…ng name: 100\n(83%)'
    assert c.show(rows=[1]).shape==(1,1)

# ---- in the probe

def probed(heat, preds=None, **kw):
    flips = pd.DataFrame(dict(masked=.1, changes=.9, follows=.9, random_changes=.1, random_follows=.1, carried=.8), index=[.1])
    preds = torch.tensor([0]*120+[1]*(len(heat)-120)) if preds is None else preds
    return Probe(heat, preds, flips, ['horse','cat'], targs=preds.clone(), **kw)

def test_the_probe_tells_of_a_cluster_that_stands_out():
    heat = torch.cat([horses(), cloud(60, 5)]).clamp(max=1)
    heat[179] = 0.
    p = probed(heat, followed={.1:torch.arange(179)<20})
    assert p.strategies is p.strategies and p.strategies.df.n.tolist()==[100,20,59]
    assert p.strategies.df.follows.tolist()==[0,1,0] and p.strategies.df.right.tolist()==[1,1,1]
    assert "20 of the 120 images of 'horse' (17%) are a cluster of their own" in p.verdict() and 'See `show_strategies`.' in p.verdict()
    assert p.show_strategies().shape==(2,1)
    quiet = probed(torch.cat([cloud(120), cloud(60, 5)]).clamp(max=1))
    assert 'cluster' not in quiet.verdict() and quiet.show_strategies() is None

def test_the_probe_knows_which_predictions_follow_and_shows_the_images(trained):
    p = probe(trained, n=60, areas=(.05,.1))
    assert set(p.followed)=={.05,.1} and all(len(o)==p.n for o in p.followed.values())
    assert all(float(o.float().mean())==pytest.approx(p.flips.follows[a]) for a,o in p.followed.items())
    assert len(p.items)==60 and p.show_strategies(trained, rows=[0], n=2).shape==(1,3)

# ---- in the report

def seen(tmp_path, heat, preds):
    files = []
    for i in range(len(heat)):
        files.append(tmp_path/f'{i}.png')
        Image.new('RGB', (16,16), (i,0,0)).save(files[-1])
    return SimpleNamespace(looked=Looked(heat={'a <model>':heat}, preds={'a <model>':preds}, files=files, labels=['<horse>']*len(heat)))

def test_the_report_shows_the_clusters(tmp_path):
    html = to_xml(strategies(seen(tmp_path, horses().clamp(max=1), ['<horse>']*120)))
    assert html.count('<img')==2*(1+2*4) and '20 (17%)' in html and 'at the bottom left' in html
    assert "of &#x27;&lt;horse&gt;&#x27; (17%)" in html or "of '&lt;horse&gt;' (17%)" in html
    assert '<horse>' not in html and '<model>' not in html and '100%' in html

def test_the_report_says_nothing_where_there_is_no_cluster(tmp_path):
    assert strategies(seen(tmp_path, cloud(60).clamp(max=1), ['horse']*60)) is None
    assert strategies(SimpleNamespace(looked=Looked())) is None

def test_an_image_that_is_gone_leaves_the_cluster(tmp_path):
    rep = seen(tmp_path, horses().clamp(max=1), ['horse']*120)
    for f in rep.looked.files[:20]: f.unlink()
    html = to_xml(strategies(rep))
    assert '20 (17%)' in html and html.count('<img')==2+2*4

# ---- concepts

def activations(learn, items):
    "Those of the layer that a CAM finds, by a plain hook"
    from proxy_attention.data.loaders import whole_dl
    xb,got = whole_dl(learn.dls, items, with_labels=False, bs=len(items)).one_batch()[0],[]
    hook = find_layer(learn.model, xb).module.register_forward_hook(lambda m,i,o: got.append(o.detach().clone()))
    with torch.no_grad(): out = learn.model.eval()(xb)
    hook.remove()
    return got[0].as_subclass(Tensor),out.as_subclass(Tensor)

def test_concepts_are_those_of_pytorch_grad_cam(trained):
    from pytorch_grad_cam.feature_factorization.deep_feature_factorization import dff
    items = trained.dls.valid_ds.items[:24]
    act,_ = activations(trained, items)
    with pytest.warns(ConvergenceWarning): theirs,maps = dff(act.numpy().copy(), 3)
    ours = concepts(trained, items, 3)
    assert ours.heat.shape==maps.shape==(24,3,*act.shape[2:]) and (ours.heat>=0).all() and (ours.directions>=0).all()
    match = np.corrcoef(np.r_[[ours.heat[:,k].flatten().numpy() for k in range(3)], [maps[:,k].flatten() for k in range(3)]])[:3,3:]
    assert sorted(match.argmax(1))==[0,1,2] and match.max(1).min()>.999, 'the same maps, in some order and scale'
    low = act.transpose(0, 1).flatten(1).min(1).values
    assert torch.allclose(ours.directions[:,match.argmax(1).argsort()], torch.from_numpy(theirs)-low[:,None], atol=1e-3)

def test_the_importance_of_concepts_is_what_they_add_to_the_score(trained):
    items = trained.dls.valid_ds.items[:10]
    act,out = activations(trained, items)
    c,head = concepts(trained, items, 12),trained.model[-1]
    added = torch.einsum('ck,ikhw->ikc', c.directions, c.heat)/act[0,0].numel() # through the mean over the places
    assert torch.allclose(c.importance, (added@head.weight.T).gather(2, out.argmax(1)[:,None,None].expand(-1,12,1))[...,0], atol=1e-3)
    low = act.transpose(0, 1).flatten(1).min(1).values
    whole = c.importance.sum(1)+(low@head.weight.T+head.bias)[out.argmax(1)]
    assert torch.allclose(whole, out.max(1).values, atol=.5), 'with the minimum of each channel they are nearly the score'

def test_concepts_leave_the_learner_alone_and_name_clusters(trained, weights, same):
    items,before,state = trained.dls.valid_ds.items[:24],weights(trained),torch.get_rng_state()
    a,b = (concepts(trained, items, 3) for _ in range(2))
    assert torch.equal(a.heat, b.heat) and torch.equal(a.importance, b.importance)
    assert same(weights(trained), before) and torch.equal(torch.get_rng_state(), state) and '_Seen' not in attributions
    found = heat_clusters(a.heat.sum(1), [0]*12+[1]*12, ['a','b'])
    named = a.by(found)
    assert named.concept.tolist()==[int(a.importance[:12].mean(0).argmax()), int(a.importance[12:].mean(0).argmax())]
    with pytest.raises(ValueError, match='24 images with concepts, but 5 in clusters'): a.by(heat_clusters(torch.rand(5,4,4), [0]*5))
    with pytest.raises(ValueError, match='n=0'): concepts(trained, items, 0)
    with pytest.raises(ValueError, match='n=65'): concepts(trained, items, 65)
