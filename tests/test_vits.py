"Transformers as they are today: which tokens are patches, on which grid, whatever stands beside them; random weights only"
from copy import deepcopy
import pytest, timm, torch, torchvision
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.cams import HiResCAM
from proxy_attention.attribution.layers import named_layer, token_places

small = dict(embed_dim=32, depth=2, num_heads=2, num_classes=3)
# name → settings beside `small`, patch, size, and how many tokens are no patches
vits = {
    'vit_small_patch14_reg4_dinov2':({}, 14, (42,70), 5), 'vit_small_patch16_dinov3':({}, 16, (48,80), 5),
    'eva02_tiny_patch14_224':({}, 14, (42,70), 1), 'beit_base_patch16_224':({}, 16, (48,80), 1),
    'vit_base_patch16_siglip_224':({}, 16, (48,80), 0), 'vit_base_patch16_siglip_gap_224':({}, 16, (48,80), 0),
    'vit_pe_core_tiny_patch16_384':({}, 16, (48,80), 1), 'deit_tiny_distilled_patch16_224':({}, 16, (48,80), 2),
    'vit_base_patch16_clip_224':({}, 16, (48,80), 1), 'cait_xxs24_224':({}, 16, (48,80), 1)}

def made(name, **kw):
    torch.manual_seed(0)
    net = timm.create_model(name, **(small|kw)).eval()
    for n,p in net.named_parameters(): # what starts as zero, or almost, lets nothing through
        if p.ndim>1 and not p.any(): nn.init.normal_(p, std=.02)
        if 'gamma' in n: nn.init.ones_(p)
    return net

def planted(size, grid, cell):
    "Two images that differ in one cell"
    x = torch.zeros(2, 3, *size)
    (h,w),(H,W) = grid,size
    x[1,:,cell[0]*H//h:(cell[0]+1)*H//h,cell[1]*W//w:(cell[1]+1)*W//w] = torch.randn(3, H//h, W//w, generator=torch.Generator().manual_seed(1))
    return x

def cell_that_changes(net, layer, x):
    "The cell of the maps that changes most between two images"
    seen = []
    handle = layer.module.register_forward_hook(lambda m,i,o: seen.append(layer.to_maps(o).float()))
    with torch.no_grad(): net(x)
    handle.remove()
    change = (seen[0][1]-seen[0][0]).norm(dim=0)
    return divmod(change.argmax().item(), change.shape[1])

@pytest.mark.parametrize('name', vits)
def test_patches_are_found_beside_other_tokens(name):
    kw,patch,size,others = vits[name]
    net,grid = made(name, img_size=size, **kw),(size[0]//patch,size[1]//patch)
    layer = find_layer(net, torch.randn(1,3,*size))
    assert (layer.kind,layer.grid,layer.shape[1]) == ('tokens',grid,grid[0]*grid[1]+others)
    assert layer.rows==slice(others, layer.shape[1])
    for cell in ((0,0), (1,3), (2,4)): assert cell_that_changes(net, layer, planted(size, grid, cell))==cell
    for how in (LayerCAM,LeGrad,AttentionRollout):
        heat = how(net, target=1, scale=False)(torch.randn(2,3,*size))
        assert heat.shape==(2,*grid) and heat.isfinite().all() and heat.std()>0

def test_more_registers_than_patches():
    "Four registers and a class token beside 2×2 patches are not 3×3 patches, and sixteen are not too many"
    for n in (4,16):
        net = timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=3, reg_tokens=n)
        layer = find_layer(net.eval(), torch.randn(1,3,32,32))
        assert (layer.grid,layer.rows) == ((2,2),slice(n+1, n+5))
        assert f'on 2×2, tokens beside {n+1} others' in repr(layer)
        nn.init.normal_(net.head.weight)
        for how in (LeGrad,AttentionRollout): assert how(net, target=1)(torch.randn(1,3,32,32)).shape==(1,2,2)

@pytest.mark.parametrize('how', [LayerCAM,LeGrad,AttentionRollout])
def test_the_order_of_registers_does_not_move_heat(how):
    net,x = made('vit_small_patch14_reg4_dinov2', img_size=(42,70)),torch.randn(2,3,42,70)
    nn.init.normal_(net.reg_token)
    for b in net.blocks: b.attn.qkv.weight.data *= 10 # so that attention differs between tokens
    turned = deepcopy(net)
    turned.reg_token.data = net.reg_token.data.roll(1, 1)
    a,b = (how(o, target=1, scale=False)(x) for o in (net,turned))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    turned.reg_token.data = 3*net.reg_token.data # what they hold does matter: they are attended to
    assert (how(turned, target=1, scale=False)(x)-a).abs().max()>1e-4

class Planted(nn.Module):
    "A transformer without attention, but for the last block of a class token, which takes the mean of all tokens"
    def __init__(self, head, registers):
        super().__init__()
        torch.manual_seed(0)
        self.net = timm.models.VisionTransformer(img_size=48, patch_size=8, embed_dim=16, depth=2, num_heads=1, num_classes=2,
            reg_tokens=registers, global_pool=head, class_token=head=='token', fc_norm=False).eval()
        for b in self.net.blocks:
            for p in (b.attn.proj.weight, b.mlp.fc2.weight): nn.init.zeros_(p)
        if head=='token':
            a = self.net.blocks[-1].attn
            nn.init.zeros_(a.qkv.weight)
            for p in (a.qkv.weight.data[-16:], a.proj.weight.data): p.copy_(torch.eye(16))
        nn.init.zeros_(self.net.pos_embed)
    def forward(self, x): return self.net(x)

@pytest.mark.parametrize('head', ['token','avg'])
@pytest.mark.parametrize('registers', [0,4])
def test_heat_is_where_the_only_evidence_is(head, registers):
    "The head reads what sets one patch apart from the others: HiResCAM, exact where the rest is linear, peaks there"
    model,x = Planted(head, registers),planted((48,48), (6,6), (1,4))[1:]
    layer = find_layer(model, x)
    assert layer.grid==(6,6)
    seen = []
    handle = layer.module.register_forward_hook(lambda m,i,o: seen.append(layer.to_maps(o)))
    model(x)
    handle.remove()
    maps = seen[0][0].flatten(1) # (channels,36)
    apart = maps[:,10]-maps[:,0]
    apart -= maps[:,0]*(apart@maps[:,0])/maps[:,0].square().sum() # nothing for the patches that are all alike
    model.net.head.weight.data.copy_(torch.stack([apart, -apart]))
    if head=='token': model.net.norm = nn.Identity() # so that all after the attention is linear
    heat = HiResCAM(model, target=0)(x)[0]
    assert heat.argmax()==10 and heat[1,4]==1 and heat.flatten().topk(2).values[1]<.05

def test_dynamic_and_padded_sizes():
    net = made('vit_tiny_patch16_224', dynamic_img_size=True, dynamic_img_pad=True)
    for size,grid in (((64,96), (4,6)), ((70,100), (5,7)), ((96,40), (6,3)), ((130,75), (9,5))):
        layer = find_layer(net, torch.randn(1,3,*size))
        assert layer.grid==grid
        with LayerCAM(net, target=1) as cam, LeGrad(net, target=1) as legrad:
            assert cam(torch.randn(2,3,*size)).shape==legrad(torch.randn(2,3,*size)).shape==(2,*grid)

@pytest.mark.parametrize('how', [LayerCAM,LeGrad,AttentionRollout])
def test_patch_dropout_drops_nothing_while_looking(how):
    plain = made('vit_tiny_patch16_224', img_size=(64,96))
    drops = timm.create_model('vit_tiny_patch16_224', img_size=(64,96), patch_drop_rate=.5, **small)
    drops.load_state_dict(plain.state_dict())
    x = torch.randn(2,3,64,96)
    heat = how(drops.train(), target=1)(x)
    torch.testing.assert_close(heat, how(plain, target=1)(x))
    assert drops.training and heat.shape==(2,4,6)

@pytest.mark.parametrize('name', ['vit_small_patch14_reg4_dinov2','vit_small_patch16_dinov3','eva02_tiny_patch14_224'])
def test_fused_attention_gives_the_same_heat(name):
    kw,_,size,_ = vits[name]
    net,x = made(name, img_size=size, **kw),torch.randn(2,3,*size)
    for how in (LayerCAM,LeGrad,AttentionRollout):
        heats = []
        for fused in (True,False):
            for b in net.blocks: b.attn.fused_attn = fused
            heats.append(how(net, target=1, scale=False)(x))
        torch.testing.assert_close(*heats, atol=1e-5, rtol=1e-3)

@pytest.mark.parametrize('how', [LayerCAM,LeGrad,AttentionRollout])
def test_weights_in_half_precision(how):
    net,x = made('vit_small_patch14_reg4_dinov2', img_size=(42,70)),torch.randn(4,3,42,70)
    full,half = how(net, target=1)(x),how(deepcopy(net).bfloat16(), target=1)(x.bfloat16())
    assert half.dtype==torch.float32 and half.shape==full.shape
    assert torch.corrcoef(torch.stack([full.flatten(), half.flatten()]))[0,1]>.9

def test_hiera_keeps_early_patches_in_another_order():
    "Only its last stage is in reading order; a layer of another stage would show heat at wrong places"
    kw = dict(embed_dim=24, num_heads=1, stages=(1,1,2,1), depth=None)
    for size in (64,96,224):
        net = timm.create_model('hiera_tiny_224', img_size=size, num_classes=3, **{k:v for k,v in kw.items() if v is not None}).eval()
        x = torch.randn(1,3,size,size)
        n = size//32
        assert [o.grid for o in find_layers(net, x) if o.kind=='tokens'][-1]==(n,n)
        for o in find_layers(net, x): assert o.kind!='tokens' or o.grid in ((n,n), (8*n,8*n))
        assert LayerCAM(net, target=1)(x).shape[1]>=n
    with pytest.raises(ValueError, match='choose a CAM'): LeGrad(net, target=1)(x)

class Home(nn.Module):
    "A home-made transformer: its other tokens stand where `place` says, or its tokens come in another order, or first"
    def __init__(self, place='first', others=2, how='plain'):
        super().__init__()
        torch.manual_seed(0)
        self.place,self.how = place,how
        self.stem,self.head = nn.Conv2d(3,16,8,8),nn.Linear(16,3)
        self.others,self.drop = nn.Parameter(torch.randn(1,others,16)),nn.Dropout(.1)
        self.body = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, 0., batch_first=how!='tokens first', norm_first=True) for _ in range(2)])
        self.order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    def forward(self, x):
        t = self.stem(x).flatten(2).transpose(1,2)
        if self.how=='shuffled': t = t[:,self.order]
        others = self.others.expand(len(x), -1, -1)
        parts = dict(first=[others,t], last=[t,others], middle=[t[:,:12],others,t[:,12:]])[self.place]
        t = self.drop(torch.cat(parts, 1))
        if self.how=='tokens first': t = t.transpose(0,1)
        for b in self.body: t = b(t)
        return self.head(t.mean(0 if self.how=='tokens first' else 1))

@pytest.mark.parametrize('place', ['first','last','middle'])
@pytest.mark.parametrize('others', [2,7])
def test_other_tokens_stand_anywhere(place, others):
    net,size = Home(place, others).eval(),(32,48)
    layer = find_layer(net, torch.randn(1,3,*size))
    assert layer.grid==(4,6) and layer.shape[1]==24+others
    for cell in ((0,0), (1,5), (2,1), (3,4)): assert cell_that_changes(net, layer, planted(size, (4,6), cell))==cell
    for how in (LayerCAM,LeGrad,AttentionRollout): assert how(net, target=1)(torch.randn(2,3,*size)).shape==(2,4,6)
    assert named_layer(net, 'body.0', torch.randn(1,3,*size)).grid==(4,6)

def test_unknown_tokens_are_refused_with_what_to_pass():
    x = torch.randn(2,3,32,48)
    shuffled,first = Home(how='shuffled').eval(),Home(how='tokens first').eval()
    for how in (LayerCAM,GradCAM):
        with pytest.raises(ValueError, match=r'on no grid over the 32×48 image that could be found.*`grid=\(height, width\)`.*`layer=`'):
            how(shuffled, target=1)(x)
        with pytest.raises(ValueError, match=r'\(tokens, images, channels\).*`batch_first=True`'): how(first, target=1)(x)
    with pytest.raises(ValueError, match=r'on no grid .* give `grid='): named_layer(shuffled, 'body.0', x)
    with pytest.raises(ValueError, match='do not hold 9×9 patches: give another'): LayerCAM(shuffled, target=1, grid=9)(x)
    for how in (LeGrad,AttentionRollout):
        with pytest.raises(ValueError, match=r'The 26 tokens .* give `grid=\(height, width\)`'): how(shuffled, target=1)(x)
        with pytest.raises(ValueError, match=r'The 26 tokens .* do not hold 9×9 patches'): how(shuffled, target=1, grid=9)(x)
    for how in (LayerCAM,LeGrad,AttentionRollout): # what you say is believed
        assert how(shuffled, target=1, grid=(4,6))(x).shape==(2,4,6)
        assert how(shuffled, target=1, grid=(2,12))(x).shape==(2,2,12)
    assert LayerCAM(shuffled, 'body.0', target=1, grid=(4,6))(x).shape==(2,4,6)
    assert LayerCAM(first, 'stem', target=1)(x).shape==(2,4,6)

@pytest.mark.parametrize('grid,error', [((1,2,3), ValueError), (0, ValueError), ('4', (TypeError,ValueError)), ((4,True), (TypeError,ValueError))])
def test_grids_that_are_none(grid, error):
    for how in (LayerCAM,LeGrad):
        with pytest.raises(error, match='grid='): how(digits_net(), grid=grid)

def test_a_cnn_is_run_as_before():
    "Not one pass more: where there are no tokens, no tokens are placed"
    net,ran = digits_net(),[]
    net[0].register_forward_hook(lambda m,i,o: ran.append(len(o)))
    find_layer(net, torch.randn(2,3,32,32))
    assert ran==[1]

def test_placing_tokens_leaves_no_trace():
    net = made('vit_tiny_patch16_224', img_size=64).train()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    x,rng = torch.randn(1,3,64,64),torch.get_rng_state()
    kept = x.clone()
    assert token_places(net, x)=={16:(slice(0,16),(4,4)), 17:(slice(1,17),(4,4))}
    assert torch.equal(torch.get_rng_state(), rng) and torch.equal(x, kept) and net.training and net.head.weight.grad.eq(1).all()
    assert not any(m._forward_hooks for m in net.modules())

def test_windows_and_hybrids():
    "Networks with attention whose last grid is no row of tokens"
    nets = {
        'swin_tiny_patch4_window7_224':(dict(embed_dim=24, depths=(1,1,1,1), num_heads=(1,1,2,2), img_size=224), 224, (7,7)),
        'convnextv2_atto':({}, 128, (4,4)), 'fastvit_t8':({}, 128, (4,4)), 'mobilenetv4_hybrid_medium':({}, 128, (4,4)),
        'maxvit_pico_rw_256':(dict(img_size=128), 128, (4,4)), 'levit_128s':({}, 224, (4,4))}
    for name,(kw,size,grid) in nets.items():
        assert find_layer(timm.create_model(name, num_classes=3, **kw), torch.randn(1,3,size,size)).grid==grid, name

def test_torchvision():
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3)
    layer = find_layer(vit, torch.randn(1,3,64,64))
    assert (layer.name,layer.grid,layer.rows) == ('encoder.layers.encoder_layer_1.ln_1',(4,4),slice(1,17))
    assert cell_that_changes(vit.eval(), layer, planted((64,64), (4,4), (1,2)))==(1,2)
    swin = torchvision.models.SwinTransformer(patch_size=[4,4], embed_dim=24, depths=[1,1], num_heads=[2,2], window_size=[4,4], num_classes=3)
    layer = find_layer(swin, torch.randn(1,3,64,96))
    assert layer.grid==(8,12)
    assert cell_that_changes(swin.eval(), layer, planted((64,96), (8,12), (5,9)))==(5,9)

@pytest.mark.parametrize('name,pool,layer,read', [
    ('vit_small_patch14_reg4_dinov2', 'token', 'blocks.1.norm1', 1), ('vit_small_patch16_dinov3', 'avg', 'norm', 15),
    ('eva02_tiny_patch14_224', 'avg', 'norm', 15), ('vit_base_patch16_siglip_224', 'map', 'norm', 15),
    ('deit_tiny_distilled_patch16_224', 'token', 'blocks.1.norm1', 2)])
def test_fastai_keeps_the_pooling_of_timm(few, name, pool, layer, read):
    "`vision_learner` puts its own layers after what timm has pooled: a ViT keeps its class token, mean or attention pooling"
    _,patch,size,others = vits[name]
    learn = vision_learner(ImageDataLoaders.from_folder(few, valid='valid', bs=8, num_workers=0), name, pretrained=False, n_out=3,
        img_size=size, **{k:v for k,v in small.items() if k!='num_classes'})
    x = torch.randn(2,3,*size)
    found = find_layer(learn.model, x)
    assert (learn.model[0].model.global_pool,found.name,found.grid) == (pool,f'0.model.{layer}',(3,5))
    assert found.rows==slice(others, 15+others)
    attr = AttentionRollout(learn.model)
    assert attr(x).shape==LeGrad(learn.model, target=1)(x).shape==(2,3,5) and attr.read.sum()==read
