"Published repairs of a last layer: each against an answer that is known, and none touches anything but that layer"
import itertools, random
import numpy as np, pytest, torch
from sklearn.linear_model import LogisticRegression
from fastai.vision.all import *
from fastai.data.load import DataLoader
from proxy_attention.data.digits import digits_learner, digits_net
from proxy_attention.proxy import peers as module
from proxy_attention.proxy.head import fit_linear
from proxy_attention.proxy.peers import *

def loaders(train, valid):
    return DataLoaders(*(DataLoader(list(zip(*o)), bs=16, shuffle=o is train, num_workers=0) for o in (train,valid)))

def on_features(x, y, xv, yv, weight, bias=None):
    "A learner whose last layer sees these features as they are, behind a body that training mode would change"
    classes,d = weight.shape
    body = nn.Sequential(nn.BatchNorm1d(d, eps=0, affine=False), nn.Dropout(.5))
    net = nn.Sequential(body, nn.Linear(d, classes))
    with torch.no_grad():
        net[1].weight.copy_(weight)
        net[1].bias.copy_(torch.zeros(classes) if bias is None else bias)
    return Learner(loaders((x,y), (xv,yv)), net, loss_func=CrossEntropyLossFlat())

def blobs(n, classes=3, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)%classes
    return torch.randn(n, d, generator=g)+F.one_hot(y, d), y

def shortcut(n, rho, seed=0):
    "Feature 0 is the object, 1 the shortcut that agrees in a share of `rho`, 2 noise; none is negative"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)%2
    place = torch.where(torch.rand(n, generator=g)<rho, y, 1-y)
    x = torch.stack([y*1.,place*1.,torch.zeros(n)], 1)*2+torch.rand(n, 3, generator=g)*torch.tensor([1.5,.5,1.])
    return x, y, 2*y+place

leaning = torch.tensor([[0.,-1,0],[0,1,0]]) # to the shortcut alone
def leaner(n=200, rho=.95, valid=.5, seed=0):
    (x,y,_),(xv,yv,gv) = shortcut(n, rho, seed),shortcut(n, valid, seed+1)
    return on_features(x, y, xv, yv, leaning, torch.tensor([1.25,-1.25])),xv,yv,gv

def pictures(n, seed):
    "Where it is bright says the class, and so does the colour"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)%2
    x = torch.rand(n, 3, 8, 8, generator=g)*.3
    for i,c in enumerate(y.tolist()): x[i,c,4*c:4*c+4,2:6] += .7
    return x,y

@pytest.fixture(scope='module')
def small():
    "A trained network for small pictures, and what it learned"
    set_seed(0)
    learn = Learner(loaders(pictures(64, 0), pictures(40, 1)), digits_net(2), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    return learn,{k:v.clone() for k,v in learn.model.state_dict().items()}

def right_on(learn, x): return learn.model.eval()(x).argmax(1)
def head(learn): return [o.detach().clone() for o in learn.model[-1].parameters()]

# ---- all of them

def states(): return [random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

@pytest.mark.parametrize('name', peers)
def test_only_the_last_layer_changes_and_nothing_is_left_behind(small, name):
    learn,first = small
    learn.model.load_state_dict(first)
    with torch.no_grad(): learn.model[-1].bias[0] += 2 # something is to be mended
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    learn.model.train()
    learn.model[0][1].eval() # as it is while a part is frozen
    modes,rng,cbs = [m.training for m in learn.model.modules()],states(),list(learn.cbs)
    grads = [(p.requires_grad,p.grad,p.grad.clone()) for p in learn.model.parameters()]
    said = peers[name](learn)
    assert isinstance(said, dict) and said
    assert [m.training for m in learn.model.modules()]==modes and states()==rng and list(learn.cbs)==cbs
    assert all(p.requires_grad==r and p.grad is g and torch.equal(g, was) for p,(r,g,was) in zip(learn.model.parameters(), grads))
    now = learn.model.state_dict()
    changed = {k for k in now if not torch.equal(now[k], before[k])}
    last = {k for k in now if k.startswith(f'{len(learn.model)-1}.')}
    assert changed==({max(o for o in last if 'bias' in o)} if name=='scaling' else last), changed
    learn.model.load_state_dict(before)
    torch.manual_seed(5)
    assert peers[name](learn)==said
    assert all(torch.equal(now[k].clone(), learn.model.state_dict()[k]) for k in now), 'the same settings make the same layer'

def test_names_and_sources():
    assert list(peers)==['balanced','afr','evals','neurontune','dac','scaling']
    assert all('arXiv' in f.__doc__ for k,f in peers.items() if k!='balanced')

@pytest.mark.parametrize('name', [o for o in peers if o!='dac'])
def test_without_validation_images(name):
    x,y = blobs(30)
    learn = on_features(x, y, x[:0], y[:0], torch.zeros(3,5))
    with pytest.raises(ValueError, match='no validation images'): peers[name](learn)
    learn.dls = DataLoaders(learn.dls.train)
    with pytest.raises(ValueError, match='make the loaders with a validation part'): peers[name](learn)

@pytest.mark.parametrize('name', peers)
def test_a_single_output_and_a_layer_without_bias(name):
    x,y = pictures(16, 0)
    net = digits_net(1)
    before = {k:v.clone() for k,v in net.state_dict().items()}
    learn = Learner(loaders((x,y), (x,y)), net, loss_func=CrossEntropyLossFlat())
    with pytest.raises(TypeError, match='single output'): peers[name](learn)
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    net = nn.Sequential(*digits_net(2)[:-1], nn.Linear(64, 2, bias=False))
    bare = Learner(loaders((x,y), (x,y)), net, loss_func=CrossEntropyLossFlat())
    peers[name](bare)
    assert bare.model[-1].bias.shape==(2,) and bare.model[-1].bias.isfinite().all()

# ---- halves

def test_halves():
    x,y = blobs(47)
    learn = on_features(x[:9], y[:9], x, y, torch.zeros(3,5))
    h = held_halves(learn)
    assert h.layer is learn.model[1]
    assert sorted([*h.fit_idxs.tolist(),*h.choose_idxs.tolist()])==list(range(47)) and abs(len(h.fit_idxs)-len(h.choose_idxs))==1
    for o,i in ((h.fit,h.fit_idxs),(h.choose,h.choose_idxs)):
        assert torch.equal(o.x, x[i]) and torch.equal(o.targs, y[i]) and i.tolist()==sorted(i.tolist())
        assert (o.targs.bincount()-y.bincount()/2).abs().max()<=.5
    torch.manual_seed(9)
    again,other = held_halves(learn),held_halves(learn, seed=1)
    assert torch.equal(again.fit_idxs, h.fit_idxs) and not torch.equal(other.fit_idxs, h.fit_idxs)

def test_a_class_that_a_half_would_lack(few):
    x,y = blobs(30)
    for left,n in ((2,'1 of the 21'),(1,'0 of the 20')):
        keep = torch.tensor([i for i in range(30) if y[i]!=2 or i<3*(left-1)])
        learn = on_features(x, y, x[keep], y[keep], torch.zeros(3,5))
        with pytest.raises(ValueError, match=f'Class 2 of 3 has {n} validation images, and at least 2 are needed, one for each half'):
            balanced_head(learn)
    with pytest.raises(ValueError, match='Class 2 of 3 has 0 .* at least 1 is needed: validate on more'): scale_classes(learn)
    with pytest.raises(ValueError, match='of 10 has 1 of the 16'): held_halves(digits_learner(few))

def test_the_control_is_a_balanced_fit_to_the_first_half():
    x,y = blobs(61)
    learn = on_features(x, y, x, y, torch.zeros(3,5))
    h = held_halves(learn, 3)
    assert balanced_head(learn, .05, 3)==dict(images=30)
    assert all(torch.equal(a, b) for a,b in zip(head(learn), fit_linear(*h.fit, 3, .05)))

def test_worst_of():
    right,groups = torch.tensor([1,1,0,1]).bool(),torch.tensor([7,7,2,2])
    assert worst_of(right, groups)==(.5,.75)

# ---- AFR

def test_afr_weights():
    y = torch.tensor([0,0,0,1])
    mu = afr_weights(torch.tensor([[2.,0],[0,2.],[0,0],[0,0]]), y, 4)
    p = torch.tensor([2.,-2,0]).sigmoid().double()
    assert torch.allclose(mu[:3]/mu[3], (-4*(p-.5)).exp()/3) and abs(float(mu.sum())-1)<1e-12
    assert torch.allclose(afr_weights(torch.randn(4,2), y, 0), torch.tensor([1,1,1,3.]).double()/6)

def test_afr_without_gamma_is_a_balanced_fit():
    "scikit-learn's, with the bias as one more feature, since the distance of the bias counts as well"
    x,y = blobs(100)
    x,y = x[:80],torch.where(torch.arange(80)<30, 0, y[:80])
    learn = on_features(x, y, x, y, torch.zeros(3,5))
    fit = held_halves(learn).fit
    assert afr(learn, gamma=0, penalty=.02).keys()=={'gamma','penalty','worst'}
    peer = LogisticRegression(C=1/(2*.02*len(fit.x)), class_weight='balanced', fit_intercept=False, max_iter=2000, tol=1e-8)
    peer.fit(np.c_[fit.x.numpy(), np.ones(len(fit.x))], fit.targs.numpy())
    w,b = head(learn)
    assert np.allclose(np.c_[w, b], peer.coef_, atol=1e-4) and np.abs(peer.coef_).max()>.3

def test_afr_stays_near_and_chooses():
    learn,xv,yv,gv = leaner()
    base = head(learn)
    afr(learn, 4, 1e6)
    assert all(torch.allclose(a, b, atol=1e-4) for a,b in zip(base, head(learn)))
    before = worst_of(right_on(learn, xv)==yv, gv)[0]
    learn,*_ = leaner()
    said = afr(learn)
    assert said['gamma'] in (4,8,12,16,20) and said['penalty'] in (.001,.01,.1)
    h = held_halves(learn)
    assert said['worst']==worst_of(right_on(learn, h.choose.x)==h.choose.targs, h.choose.targs)[0]
    assert before==0 and worst_of(right_on(learn, xv)==yv, gv)[0]>.9

def test_of_those_tried_the_best_is_kept():
    "With a penalty that nothing moves against, the network stays as wrong as it is: the other one is chosen, wherever it stands"
    for penalty in ((1e6,.001),(.001,1e6)):
        learn,*_ = leaner()
        assert afr(learn, 8, penalty)['penalty']==.001

# ---- EVaLS

def test_environments_are_the_best_there_are():
    "All ways to part a few images, by EIIL's own objective"
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        scores,y = torch.randn(9, 4, generator=g),torch.randint(4, (9,), generator=g)
        s = torch.ones((), requires_grad=True)
        slopes = torch.stack([torch.autograd.grad(F.cross_entropy(s*scores[i:i+1], y[i:i+1]), s)[0] for i in range(9)])
        def objective(q): return float((slopes*q).mean()**2+(slopes*(1-q)).mean()**2)
        best = max(objective(torch.tensor(q)) for q in itertools.product((0.,1.), repeat=9))
        assert abs(objective(eiil_split(scores, y).float())-best)<1e-6

def test_two_classes_are_parted_by_right_and_wrong():
    g = torch.Generator().manual_seed(0)
    scores,y = 3*torch.randn(500, 2, generator=g),torch.randint(2, (500,), generator=g)
    wrong = scores.argmax(1)!=y
    assert torch.equal(eiil_split(scores, y).bool(), wrong) and 100<wrong.sum()<400

def test_extremes():
    losses,y = torch.tensor([5.,1,3,2,4,9,7,8,6]),torch.tensor([0,0,0,0,0,1,1,1,1])
    assert set(extremes(losses, y, 1).tolist())=={1,0,8,5} and set(extremes(losses, y, 2).tolist())=={1,3,4,0,8,6,7,5}
    with pytest.raises(ValueError, match='k=3 is too many: the smallest class has 4 images, so at most 2'): extremes(losses, y, 3)

@pytest.mark.parametrize('classes,l1', [(2,.02),(3,.05),(3,.002)])
def test_a_sparse_layer_is_at_its_minimum(classes, l1):
    "Where a weight is 0 the loss falls less steeply than the penalty rises, elsewhere as steeply"
    x,y = blobs(120, classes, 12)
    w,b = (o.double() for o in fit_sparse(x, y, classes, l1))
    v = torch.cat([w,b[:,None]], 1).requires_grad_()
    F.cross_entropy(x.double()@v[:,:-1].T+v[:,-1], y).backward()
    on = v.detach()!=0
    assert on.any() and (l1<.01 or not on.all())
    assert torch.allclose(v.grad[on], -l1*v.detach().sign()[on], atol=2e-4)
    assert (v.grad[~on].abs()<=l1+2e-4).all()

def test_evals(monkeypatch):
    learn,xv,yv,gv = leaner()
    asked,choose = [],module._choose
    monkeypatch.setattr(module, '_choose', lambda halves,tried,groups: asked.append(groups) or choose(halves, tried, groups))
    h = held_halves(learn)
    seen = h.choose.x@leaning.T+torch.tensor([1.25,-1.25])
    groups = 2*h.choose.targs+(seen.argmax(1)!=h.choose.targs)
    said = evals(learn)
    assert torch.equal(asked[0], groups) and len(groups.unique())==4
    assert said['k'] in (10,25) and said['l1'] in (.001,.01,.05,.1,.2) and said['wrong']==1
    assert said['worst']==worst_of(right_on(learn, h.choose.x)==h.choose.targs, groups)[0]
    assert worst_of(right_on(learn, xv)==yv, gv)[0]>.9
    one = evals(learn, k=4, l1=.01)
    assert (one['k'],one['l1'])==(4,.01)

# ---- NeuronTune

def test_misleading():
    x = torch.tensor([[1.,5,0,2],[1,1,0,2],[1,3,-9,2], [4,4,0,1],[0,5,0,1], [9,9,9,9]])
    y,right = torch.tensor([0,0,0,0,0,1]),torch.tensor([1,1,1,0,0,0]).bool()
    assert misleading(x, y, right).tolist()==[True,True,False,False], 'medians 1,3,0,2 and 2,4.5,0,1; class 1 has nothing right'
    assert misleading(x, y, right, over=1.2).tolist()==[False,True,False,False]
    two = torch.cat([x, torch.tensor([[0.,0,1,0],[0,0,3,0]])])
    y,right = torch.cat([y, torch.tensor([2,2])]),torch.cat([right, torch.tensor([True,False])])
    assert misleading(two, y, right).tolist()==[True,True,True,False], 'in any class'

def test_neurontune_switches_the_shortcut_off():
    "The object's feature is as large in mistakes as elsewhere; the shortcut's is larger in those of class 0"
    (x,y,_),(xv,yv,gv) = shortcut(200, .95),shortcut(200, .5, 1)
    xv[:,0],xv[:,2] = 2*yv,1
    learn = on_features(x, y, xv, yv, leaning, torch.tensor([1.25,-1.25]))
    said = neurontune(learn)
    w,b = head(learn)
    assert said['off']==1 and said['features']==3 and 30<said['mistakes']<70
    assert not w[:,1].any() and w[:,0].abs().min()>.1 and worst_of(right_on(learn, xv)==yv, gv)[0]==1
    rest = fit_linear(x[:,[0,2]], y, 2)
    assert torch.equal(w[:,[0,2]], rest[0]) and torch.equal(b, rest[1]), 'fitted to training images'

def test_neurontune_with_nothing_left_or_nothing_off():
    weight,bias = torch.tensor([[-1.,-1,-1],[1,1,1]]),torch.tensor([1.,-1])
    x = torch.tensor([[1.,1,1],[0,0,0]]).repeat(20, 1) # 1: the network says class 1
    learn = on_features(x, x[:,0].long(), x, x[:,0].long(), weight, bias)
    assert neurontune(learn)==dict(off=0, features=3, mistakes=0) and not torch.equal(head(learn)[0], weight), 'fitted again all the same'
    y = torch.arange(40)//20 # class 0 is wrong where all is larger
    learn = on_features(x, y, x, y, weight, bias)
    with pytest.raises(ValueError, match='All 3 features .* use a larger `over` than 0.0'): neurontune(learn)
    assert torch.equal(head(learn)[0], weight) and torch.equal(head(learn)[1], bias)

# ---- DaC

def test_the_foreground():
    heat = torch.arange(16.).reshape(1,4,4)
    for t in (.25,.5,.75): assert torch.equal(hottest(heat, (4,4), t), heat>=heat.flatten().quantile(t))
    assert hottest(heat, (8,8), .5).shape==(1,8,8) and hottest(torch.zeros(2,2,2), (6,6), .8).all()
    two = torch.stack([heat[0],100*heat[0].flip(0)])
    assert hottest(two, (4,4), .75).flatten(1).sum(1).tolist()==[4,4], 'each image has its own quantile'

def test_a_composite_is_exact():
    g = torch.Generator().manual_seed(0)
    xb,mask,colour = torch.rand(5,3,6,7, generator=g),torch.rand(5,6,7, generator=g)<.4,torch.rand(1,3,1,1, generator=g)
    other = torch.tensor([3,0,4,1,1])
    new,alone = recomposed(xb, mask, other, colour),cut_out(xb, mask, colour)
    for i,y,x in itertools.product(range(5), range(6), range(7)):
        j = int(other[i])
        own = xb[i,:,y,x] if mask[i,y,x] else None
        back = colour[0,:,0,0] if mask[j,y,x] else xb[j,:,y,x]
        assert torch.equal(new[i,:,y,x], back if own is None else own)
        assert torch.equal(alone[i,:,y,x], colour[0,:,0,0] if own is None else own)
    m = mask[:,None].float() # and the sum of the paper
    paper = xb*m+(1-m)*(1-m[other])*xb[other]+(1-m)*m[other]*colour
    assert torch.allclose(new, paper, atol=1e-6)

def test_knee():
    assert knee([.3,.4,.5,.6,.7,.8], [0,.01,.02,.03,1,2])==3 and knee([0,1,2], [0,0,1])==1
    for y in ([0,1,2,3], [0,2,2.5,2.7], [1,1,1,1]): assert knee([1,2,3,4], y)==3, 'no knee: the last'

def test_what_dac_fits_to(small, monkeypatch):
    learn,first = small
    learn.model.load_state_dict(first)
    seen = {}
    def fit(*args): seen['args'] = args; return fit_linear(*args)
    explained,orders,cam,batches = [],[],module.XGradCAM,module._batches
    monkeypatch.setattr(module, '_batches', lambda learn,items,order,*args: orders.append(order) or batches(learn, items, order, *args))
    monkeypatch.setattr(module, 'fit_linear', fit)
    monkeypatch.setattr(module, 'XGradCAM', lambda model,target: explained.append(target) or cam(model, target=target))
    said = dac(learn, alpha=3, q=.25, passes=2, sample=20, bs=16)
    x,targs,classes,penalty,weights = seen['args']
    n,low = 64,said['low']
    assert low==16 and explained==['pred'] and said['removed'] in dac_shares and len(said['losses'])==6
    assert len(x)==len(targs)==len(weights)==n+2*2*low and classes==2
    mixed = weights[n:]
    some,each = orders[:6],orders[6:]
    assert [len(o) for o in orders]==[20]*6+[64]*2 and all(torch.equal(o, some[0]) for o in some), 'one curve, of the same images'
    assert all(sorted(o.tolist())==list(range(64))!=o.tolist() for o in each) and not torch.equal(*each), 'drawn anew'
    assert abs(float(weights[:n].sum())-1)<1e-5 and abs(float(mixed.sum())-6)<1e-4 and mixed.unique().numel()==1
    y = torch.stack([o[1] for o in learn.dls.train_ds])
    assert torch.equal(targs[:n], y), 'the originals, in order'

def test_dac_takes_low_losses_and_donors_of_another_class():
    "One colour per image, and a number in the corner: of each image that comes out it is known whose pixels it has"
    n = 40
    xb = torch.rand(n,3,1,1).expand(n,3,4,4).clone()
    yb,low = torch.arange(n)%4,torch.arange(n)%5!=0
    heat = torch.zeros(n,4,4)
    heat[:,:2] = 1
    batches = [(i, xb[i], yb[i]) for i in torch.randperm(n, generator=torch.Generator().manual_seed(0)).split(20)]
    for invert in (False,True):
        n_low = 0
        for (i,*_),(new,y) in zip(batches, module._mixed(batches, heat, low, .5, invert, np.random.default_rng(0))):
            mine,k = i[low[i]],int(low[i].sum())
            n_low += k
            mean = xb[i].mean((0,2,3))
            assert len(new)==2*k and torch.equal(y, torch.cat([yb[mine]]*2))
            own,rest = (slice(2,4),slice(0,2)) if invert else (slice(0,2),slice(2,4))
            assert torch.equal(new[:k,:,own], xb[mine][:,:,own]) and torch.equal(new[k:,:,own], xb[mine][:,:,own])
            assert torch.allclose(new[:k,:,rest], mean[None,:,None,None].expand(k,3,2,4))
            for o,j in zip(new[k:,:,rest,0], mine):
                assert any(torch.equal(o[:,0], xb[d,:,0,0]) and yb[d]!=yb[j] and low[d] for d in mine)
        assert n_low==int(low.sum())
    assert not list(module._mixed(batches, heat, torch.zeros(n, dtype=torch.bool), .5, False, np.random.default_rng(0)))

def test_images_that_come_in_another_order():
    class Draws:
        def __len__(self): return 32
        def __getitem__(self, i): return torch.rand(3,8,8),torch.tensor(random.randrange(2))
    ds = Draws()
    learn = Learner(DataLoaders(*(DataLoader(ds, bs=16, num_workers=0) for _ in range(2))), digits_net(2), loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match='were in another order when they were loaded again'): dac(learn)

# ---- scaling

def worst_at(scores, y, t): return worst_of((scores+torch.tensor([0.,float(t)])).argmax(1)==y, y)[0]

def test_two_classes_get_the_best_threshold():
    "No threshold between any two images is better, and where the network is best as it is nothing moves"
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        y = (torch.rand(60, generator=g)<.3).long()
        scores = torch.randn(60, 2, generator=g)+F.one_hot(y, 2)+torch.tensor([1.5,0])
        margins = (scores[:,0]-scores[:,1]).sort().values.double()
        best = max(worst_at(scores, y, t) for t in torch.cat([margins[:1]-1, (margins[1:]+margins[:-1])/2, margins[-1:]+1]))
        shift = best_shifts(scores, y)
        assert shift[0]==0 and abs(worst_at(scores, y, shift[1])-best)<1e-6 and best>worst_at(scores, y, torch.tensor(0.))
        assert not best_shifts(scores+shift, y).any()
        assert torch.allclose(best_shifts(scores-50, y), shift, atol=1e-4), 'only differences between scores count'

def test_the_known_threshold():
    scores = torch.tensor([[0.,-5],[0,-4],[0,-3],[0,-1],[0,-2],[0,.5]])
    y = torch.tensor([0,0,0,0,1,1])
    assert best_shifts(scores, y).tolist()==[0,2.5] and best_shifts(scores.flip(1), 1-y).tolist()==[2.5,0], 'the frequent class stays'

def test_more_classes():
    "A shift that was planted is found again: nothing is wrong afterwards"
    g = torch.Generator().manual_seed(0)
    y = torch.arange(80)%4
    scores = 8*F.one_hot(y, 4)+torch.randn(80, 4, generator=g)+torch.tensor([0.,9,-9,-2])
    assert worst_of(scores.argmax(1)==y, y)[0]==0
    assert worst_of((scores+best_shifts(scores, y)).argmax(1)==y, y)==(1,1)

def test_scaling_moves_the_bias_alone():
    learn,xv,yv,gv = leaner()
    with torch.no_grad(): learn.model[1].bias[0] += 2
    before = head(learn)
    said = scale_classes(learn)
    w,b = head(learn)
    assert torch.equal(w, before[0]) and not torch.equal(b, before[1])
    assert torch.allclose((b-before[1]).exp(), torch.tensor(said['scale'])) and said['worst']==worst_of(right_on(learn, xv)==yv, yv)[0]
    s = torch.softmax(xv@before[0].T+before[1], 1)
    assert torch.equal((s*torch.tensor(said['scale'])).argmax(1), right_on(learn, xv)), 'softmax times a number'

# ---- what is refused

@pytest.mark.parametrize('call,error,text', [
    (lambda o: afr(o, gamma=-1), ValueError, 'gamma=-1 should be'), (lambda o: afr(o, gamma=(4,'8')), TypeError, "gamma='8' should be"),
    (lambda o: afr(o, penalty=0), ValueError, 'penalty=0 should be'), (lambda o: evals(o, k=0), ValueError, 'k=0 should be'),
    (lambda o: evals(o, l1=(.1,0)), ValueError, 'l1=0 should be'), (lambda o: neurontune(o, over=-.1), ValueError, 'over=-0.1 should be'),
    (lambda o: neurontune(o, penalty=0), ValueError, 'penalty=0 should be'),
    (lambda o: balanced_head(o, penalty='x'), TypeError, "penalty='x'"),
    (lambda o: dac(o, alpha=-1), ValueError, 'alpha=-1 should be'), (lambda o: dac(o, q=1.5), ValueError, 'q=1.5 should be'),
    (lambda o: dac(o, passes=0), ValueError, 'passes=0 should be'),
    (lambda o: dac(o, invert='no'), TypeError, "invert='no' should be True or False"),
    (lambda o: dac(o, sample=0), ValueError, 'sample=0 should be'), (lambda o: dac(o, bs=0), ValueError, 'bs=0 should be')])
def test_settings_that_are_refused(small, call, error, text):
    learn,first = small
    learn.model.load_state_dict(first)
    with pytest.raises(error, match=text): call(learn)
    assert all(torch.equal(v, first[k]) for k,v in learn.model.state_dict().items()), 'and the layer is as it was'
