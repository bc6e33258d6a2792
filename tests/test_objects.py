"Where the object is: what somebody has is read as it was meant, found for the right file, and otherwise refused in a sentence"
import json, re, time, warnings
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from hypothesis import given as drawn, settings, strategies as st
from PIL import Image
from browser import Page, chromium
from proxy_attention.core import ProxyWarning
from proxy_attention.data.digits import digits, regions
from proxy_attention.data.objects import Objects, draw_boxes, read_objects, show_objects
from proxy_attention.data.objects import _box_grid, _cells, _cover, _drawn, _mask_grid, _polygon_grid

in_browser = pytest.mark.skipif(chromium is None, reason='there is no chromium here to draw in')

def put(f, size=(40,20), mode='RGB', **kwargs):
    "An image file of (width, height)"
    f = Path(f)
    f.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(f, **kwargs)
    return f

def square(shape=(20,40), rows=slice(5,10), cols=slice(10,30)):
    m = np.zeros(shape, bool)
    m[rows,cols] = True
    return m

@pytest.fixture
def img(tmp_path):
    "An image of 40×20 pixels, away from the working folder"
    return put(tmp_path/'imgs'/'cat.png')

def mask_of(objects, file, size=(20,40), **kwargs):
    "The one mask, as an array"
    res = read_objects(objects, **kwargs).masks([file], size)
    assert res.dtype==torch.bool and res.shape==(1,*size)
    return res[0].numpy()

def says(e, *texts):
    "The error is one sentence or more, with all of `texts` in it"
    text = str(e.value)
    assert (text[0].isupper() or text[0] in "'/") and text.endswith('.'), text
    for o in texts: assert str(o) in text, f'{o!r} is not in: {text}'

# ---- from a grid to cells

boxes = st.lists(st.tuples(st.integers(0,10), st.integers(0,6), st.integers(1,5), st.integers(1,4)), min_size=1, max_size=4)

def test_a_coco_file_with_a_polygon_elsewhere_or_no_size(tmp_path):
    "A polygon of another image counted as an image without an object; a size in words was Python's own error"
    Image.new('RGB', (30,20)).save(tmp_path/'0.png')
    def coco(o, **size):
        said = dict(images=[dict(id=0, file_name='0.png', **size)], annotations=[dict(image_id=0, segmentation=[o])])
        return read_objects(json.dumps(said), tmp_path)
    for o in ([100,100,120,100,120,120],[-9,2,-5,2,-5,9]):
        with pytest.raises(ValueError, match=rf'The polygon that begins at \({o[0]}.0, {o[1]}.0\) .* is outside the image, which is 30×20'):
            coco(o).known([tmp_path/'0.png'])
    assert coco([20,5,120,5,120,15]).known([tmp_path/'0.png'])==[0] # some of it is inside
    for width in ('x',-30,.5,True):
        with pytest.raises(ValueError, match='width and height should be numbers of pixels'): coco([0,0,9,0,9,9], width=width, height=20)
    assert coco([0,0,9,0,9,9], width=30., height=20).known([tmp_path/'0.png'])==[0]

def test_a_table_of_boxes_with_tabs(tmp_path):
    (tmp_path/'boxes.csv').write_text('file\tleft\ttop\twidth\theight\n0.png\t0\t0\t10\t10\n')
    assert read_objects(tmp_path/'boxes.csv').files==['0.png']

@drawn(boxes, st.integers(1,15), st.integers(1,15))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_cover_is_an_exact_area(found, h, w):
    "Against every box painted on a fine raster whose pixels divide the cells"
    W,H = 15,10
    fine = np.zeros((H*h,W*w), bool)
    for x,y,bw,bh in found: fine[y*h:(y+bh)*h, x*w:(x+bw)*w] = True
    cover = fine.reshape(h,H,w,W).mean((1,3))
    inside,ys,xs = _box_grid(np.array([[x/W,y/H,(x+bw)/W,(y+bh)/H] for x,y,bw,bh in found]))
    assert np.allclose(_cover(ys, h) @ inside @ _cover(xs, w).T, cover, atol=1e-6)
    cells = _cells((inside,ys,xs), (h,w))
    sure = abs(cover-.5)>1e-4
    if (cover>=.5).any() and not (cover>=.5-1e-4).all(): assert (cells==(cover>=.5))[sure].all()
    assert cells.any() and (h*w==1 or fine.all() or not cells.all())

@drawn(st.integers(1,9), st.integers(1,9), st.integers(0,2**31))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_mask_of_its_own_size_is_itself(h, w, seed):
    m = np.random.default_rng(seed).random((h,w))>.5
    if 0<m.sum()<m.size:
        assert (_cells(_mask_grid(m), (h,w))==m).all()
        assert (_cells(_mask_grid(m), (3*h,2*w))==m.repeat(3,0).repeat(2,1)).all()

def test_a_small_object_keeps_its_cell_and_a_large_one_leaves_one():
    m = np.zeros((100,100), bool)
    m[70,31] = True
    assert np.argwhere(_cells(_mask_grid(m), (4,4))).tolist()==[[2,1]]
    assert np.argwhere(~_cells(_mask_grid(~m), (4,4))).tolist()==[[2,1]]
    assert _cells(_mask_grid(m), (1,1)).tolist()==[[True]]

def test_half_a_cell_is_object_and_less_is_not():
    assert _cells(_box_grid(np.array([[0,0,.375,1.]])), (1,4)).tolist()==[[True,True,False,False]]
    assert _cells(_box_grid(np.array([[0,0,.37,1.]])), (1,4)).tolist()==[[True,False,False,False]]

def test_polygon_has_the_area_of_the_polygon():
    for pts,area in (([[.1,.1],[.9,.1],[.1,.9]],.32), ([[.25,.25],[.75,.25],[.75,.75],[.25,.75]],.25)):
        assert abs(_polygon_grid([np.array(pts)])[0].mean()-area)<.003

# ---- boxes of a dict

@pytest.mark.parametrize('box', [
    (10,5,30,10), [10,5,30,10], [(10,5,30,10)], (.25,.25,.75,.5), [[10,5,20,10],[20.,5,30,10]],
    [(10,5,20,10),(.5,.25,.75,.5)], np.array([10,5,30,10]), np.array([[10.,5,30,10]]), torch.tensor([[.25,.25,.75,.5]]),
    [torch.tensor([10,5,30,10])], (np.int64(10),np.float32(5),30,10), torch.tensor([10,5,30,10.], requires_grad=True),
    np.array([10,5,30,10], dtype=np.uint8), square(), square().astype(np.uint8), square().astype(np.uint8)*255,
    torch.from_numpy(square()), Image.fromarray(square()), Image.fromarray(square().astype(np.uint8)*3)])
def test_every_form_of_a_dict(img, box):
    for key in (str(img), img, 'cat.png', 'imgs/cat.png', 'cat', 'cat.jpg'): assert (mask_of({key:box}, img)==square()).all()

def test_a_box_that_sticks_out_is_clipped(img):
    assert (mask_of({'cat.png':(-7,-1,30,10)}, img)==square(rows=slice(0,10), cols=slice(0,30))).all()
    assert (mask_of({'cat.png':(10,5,4e3,1e9)}, img)==square(rows=slice(5,20), cols=slice(10,40))).all()

def test_numbers_within_0_and_1_are_shares_box_by_box(img):
    assert (mask_of({'cat.png':[(0,0,.5,1),(39,19,40,20)]}, img)==(square(rows=slice(0,20), cols=slice(0,20))
        | square(rows=slice(19,20), cols=slice(39,40)))).all()
    assert read_objects({'gone.png':(.1,.1,.5,1)}).has('gone.png'), 'shares need no image'

@pytest.mark.parametrize('box,texts', [
    ((1,2,3), ('(1, 2, 3)','should be four numbers','(x0, y0, x1, y1)')),
    ((1,2,3,4,5), ('should be four numbers',)), ((1,2,3,'4'), ("(1, 2, 3, '4')",'should be four numbers')),
    ((1,2,3,True), ('should be four numbers',)), ([(1,2,3,4),7], ('The box 7 ','should be four numbers')), ([[]], ('four numbers',)),
    ((1,2,float('nan'),4), ('nan','is not finite')), ((1,2,float('inf'),4), ('inf','is not finite')),
    ((5,5,5,9), ('(5, 5, 5, 9)','has no area: it is 0 wide and 4 high')), ((9,5,5,9), ('it is -4 wide',)), ((.5,.5,.1,.9), ('no area',)),
    ((10,10,10.5,11), ('less than a pixel','fractions')), ((-.1,.1,.6,.9), ('less than a pixel','(-0.1, 0.1, 0.6, 0.9)')),
    (np.zeros((4,6)), ('float64 and the shape 4×6','bool or uint8')), (np.zeros((4,6,3), np.uint8), ('uint8 and the shape 4×6×3',)),
    (np.zeros((0,4), bool), ('bool and the shape 0×4',)), (np.zeros((1,4,6), bool), ('1×4×6',))])
def test_a_box_that_cannot_be_meant_is_refused(box, texts):
    with pytest.raises(ValueError) as e: read_objects({'a/cat.png':box})
    says(e, 'a/cat.png', *texts)

def test_a_box_outside_of_its_image_is_refused(img):
    for box in ((40,0,50,10),(0,-9,10,0)):
        objects = read_objects({'cat.png':box})
        for f in (objects.has, lambda o: objects.known([o]), lambda o: objects.masks([o], (2,2))):
            with pytest.raises(ValueError) as e: f(img)
            says(e, img, 'outside the image', '40×20', tuple(map(float, box)))

@pytest.mark.parametrize('value', [5, {1}, lambda: 0, {}])
def test_wrong_types_in_a_dict(value):
    with pytest.raises(TypeError) as e: read_objects({'cat.png':value})
    says(e, 'cat.png', 'should be a box')

def test_wrong_keys_and_files(img):
    with pytest.raises(TypeError) as e: read_objects({3:(1,2,3,4)})
    says(e, '3 should be the name')
    objects = read_objects({'cat.png':(1,2,30,14)})
    for f in (lambda: objects.known([3]), lambda: objects.has(None), lambda: show_objects(objects, [3]), lambda: draw_boxes([3])):
        with pytest.raises(TypeError, match='should be the path of an image file'): f()

@pytest.mark.parametrize('objects,error,texts', [
    (None, TypeError, ('NoneType','cannot be read as objects')), (5, TypeError, ('int 5',)), ([(1,2,3,4)], TypeError, ('list',)),
    ({}, ValueError, ('No object is known',)), ('{}', ValueError, ('No object is known',)), ({'a.png':None}, ValueError, ('No object',)),
    ({'a.png':[]}, ValueError, ('No object',)), ('[1]', ValueError, ('The text should be a dict','it is a list')), 
    ('{"a": ', ValueError, ('The text is not JSON',)), ('', ValueError, ('a .csv file or a .json file',)),
    ('x'*9000, ValueError, ('a .csv file or a .json file','…')), ('gone.csv', FileNotFoundError, ('There is no file gone.csv',)),
    ('gone.JSON', FileNotFoundError, ('gone.JSON',)), ('gone/', ValueError, ("'gone/'",)),
    ({'a.png':'gone.png'}, FileNotFoundError, ('There is no mask file gone.png for a.png',))])
def test_what_says_nothing_is_refused(objects, error, texts):
    with pytest.raises(error) as e: read_objects(objects)
    says(e, *texts)
    assert len(str(e.value))<400

def test_objects_pass_and_images_should_be_a_folder(img):
    objects = read_objects({'cat.png':(1,2,30,14)})
    assert read_objects(objects) is objects and read_objects(objects, img.parent) is objects
    with pytest.raises(NotADirectoryError, match='should be a folder'): read_objects({'cat.png':(1,2,30,14)}, images=img)

def test_objects_say_what_they_hold(img):
    objects = read_objects({'cat.png':(1,2,30,14), 'a.png':square(), 'b.png':None, 'c.png':[]})
    assert len(objects)==2 and objects.files==['cat.png','a.png']
    assert repr(objects)=='Objects in 2 images: 1 with boxes or polygons, 1 with a mask'

# ---- known, unknown, empty and full

def test_known_gives_positions_and_masks_only_what_is_known(img, tmp_path):
    other = put(tmp_path/'imgs'/'dog.png')
    objects = read_objects({'cat.png':(10,5,30,10)})
    assert objects.known([other,img,str(img)])==[1,2] and objects.known([])==[] and objects.known(img)==[0]
    assert objects.has(img) and objects.has(str(img)) and not objects.has(other) and not objects.has('')
    assert objects.masks([], (3,4)).shape==(0,3,4) and objects.masks([], (3,4)).dtype==torch.bool
    assert objects.masks([img,str(img)], (20,40)).sum()==200
    with pytest.raises(ValueError) as e: objects.masks([img,other,other], (3,4))
    says(e, 'in 2 of 3 files', other, '`known(files)`')

def test_each_file_is_read_once(tmp_path, monkeypatch):
    "By whatever asks, and the masks stay what they were; what has been read is not a part of the identity"
    import proxy_attention.data.objects as module
    from proxy_attention.experiment.identity import what_is
    opened,rng,files = [],np.random.default_rng(0),[]
    for i in range(3):
        files.append(put(tmp_path/'images'/f'{i}.png', (13,11)))
        saved(tmp_path, Image.fromarray(rng.random((11,13))>.6), f'{i}.png')
    boxes = {str(files[0]):(1,2,9,7), str(files[1]):[(.1,.2,.5,.9),(.3,.1,.8,.4)]}
    real = module._opened
    monkeypatch.setattr(module, '_opened', lambda f,use: (opened.append(str(f)), real(f, use))[1])
    for objects,once in ((tmp_path/'masks', 6), (boxes, 1)): # a mask and its image; boxes in pixels need the size, fractions do not
        known,own = read_objects(objects),files[:len(boxes)]
        said = what_is(known)
        for _ in range(2):
            assert all(map(known.has, own)) and known.known(files)==list(range(3 if once==6 else 2))
            first,fine = known.masks(own, (5,6)),known.masks(own, (22,26))
        assert len(opened)==len(set(opened))==once and what_is(known)==said
        fresh = read_objects(objects)
        assert torch.equal(first, torch.from_numpy(np.stack([module._cells(p.grid(f), (5,6)) for f,p in zip(*fresh._places(own))])))
        assert torch.equal(fine, fresh.masks(own, (22,26)))
        opened.clear()

def test_an_empty_or_full_object_is_unknown_with_one_warning(tmp_path):
    files = [put(tmp_path/f'{i}.png') for i in range(6)]
    whole = np.ones((20,40), bool)
    objects = read_objects({'0.png':~whole, '1.png':whole, '2.png':square(), '3.png':(0,0,40,20), '4.png':[(0,0,.6,1),(.5,0,1,1)]})
    with pytest.warns(ProxyWarning) as seen: assert objects.known(files)==[2]
    assert len(seen)==1 and '4 of 6 images' in str(seen[0].message) and str(files[0]) in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert [objects.has(o) for o in files]==[False,False,True,False,False,False] and objects.known(files[2:3])==[0]
    with pytest.raises(ValueError, match='No object is known in 1 of 2 files'): objects.masks(files[1:3], (4,4))

def test_one_pixel_less_than_all_is_known(tmp_path):
    files = [put(tmp_path/f'{i}.png', (900,700)) for i in range(2)]
    m = np.zeros((700,900), bool)
    m[-1,-1] = True
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        objects = read_objects({'0.png':m, '1.png':~m})
        assert objects.known(files)==[0,1]
    a,b = objects.masks(files, (7,9))
    assert a.nonzero().tolist()==(~b).nonzero().tolist()==[[6,8]]

@pytest.mark.parametrize('size,error', [(7,TypeError),((7,),TypeError),('ab',TypeError),((7,7.),TypeError),((True,7),TypeError),
    ((0,7),ValueError),((7,-1),ValueError)])
def test_a_wrong_size_is_refused(img, size, error):
    with pytest.raises(error, match='height|width'): read_objects({'cat.png':(10,5,30,10)}).masks([img], size)

def test_sizes_of_torch_and_numpy_will_do(img):
    objects = read_objects({'cat.png':(10,5,30,10)})
    assert objects.masks([img], torch.zeros(3,5).shape).shape==objects.masks([img], list(np.array([3,5]))).shape==(1,3,5)

# ---- which file is meant

def test_a_name_that_leads_to_an_image_means_no_other(tmp_path, monkeypatch):
    train,valid = (put(tmp_path/o/'cat'/'1.png') for o in ('train','valid'))
    for key in (str(train), 'train/cat/1.png', './train/../train/cat/1.png', 'train\\cat\\1.png'):
        objects = read_objects({key:(10,5,30,10)}, images=tmp_path)
        assert objects.known([valid,train])==[1]
    monkeypatch.chdir(tmp_path)
    objects = read_objects({'train/cat/1.png':(10,5,30,10)})
    assert objects.known(['valid/cat/1.png','train/cat/1.png',train])==[1,2]

def test_the_whole_name_has_to_be_the_end_of_the_path(tmp_path):
    train,valid,other = (put(tmp_path/o) for o in ('train/cat/1.png','valid/cat/1.png','valid/cat/11.png'))
    objects = read_objects({'train/cat/1.png':(10,5,30,10)})
    assert objects.known([valid,train,other])==[1]
    assert read_objects({'somewhere/train/cat/1.png':(10,5,30,10)}).known([train])==[]
    assert read_objects({'../elsewhere/../cat/1.png':(10,5,30,10)}).known([train])==[0]

def test_the_longer_of_two_names_wins(tmp_path):
    a,b = (put(tmp_path/o) for o in ('a/cat/1.png','b/dog/1.png'))
    objects = read_objects({'1.png':(0,0,10,8), 'cat/1.png':(10,5,30,10)})
    assert objects.masks([a], (20,40)).sum()==100 and objects.masks([b], (20,40)).sum()==80 and objects.known([a,b])==[0,1]

def test_the_name_wins_over_the_stem_and_a_stem_over_nothing(tmp_path):
    a,b,c = (put(tmp_path/o) for o in ('a/1.png','a/1.bmp','a/x.v2.png'))
    objects = read_objects({'1.png':(0,0,10,8), '1.jpg':(10,5,30,10), 'x.v2':(0,0,9,9)})
    assert objects.masks([a], (20,40)).sum()==80 and objects.has(c)
    with pytest.raises(ValueError) as e: objects.has(b)
    says(e, b, "'1.png' or '1.jpg'")
    assert not read_objects({'x':(0,0,9,9)}).has(c), '.v2 is no extension of an image'

def test_two_files_for_one_name_are_refused(tmp_path):
    a,b = (put(tmp_path/o) for o in ('a/1.png','b/1.png'))
    objects = read_objects({'1.png':(10,5,30,10)})
    for f in (lambda: objects.known([a,b]), lambda: objects.masks([a,b], (2,2)), lambda: show_objects(objects, [a,b])):
        with pytest.raises(ValueError) as e: f()
        says(e, a, b, "'1.png'")
    assert objects.known([a,a])==[0,1] and objects.known([b])==[0]

def test_a_path_of_another_machine(tmp_path):
    cat,dog = (put(tmp_path/'train'/o/'1.png') for o in ('cat','dog'))
    for top in ('C:\\Users\\me\\train\\', '/home/me/train/', '\\\\server\\share\\train\\'):
        objects = read_objects({f'{top}cat\\1.png':(10,5,30,10), f'{top}dog/1.png':(0,0,10,8)})
        assert objects.masks([cat,dog], (20,40)).sum((1,2)).tolist()==[100,80]
    objects = read_objects({'/x/bird/1.png':(10,5,30,10), '/y/fish/1.png':(0,0,10,10)})
    with pytest.raises(ValueError) as e: objects.has(cat)
    says(e, cat, '/x/bird/1.png', '/y/fish/1.png')

def test_two_names_of_one_image_are_refused(tmp_path):
    put(tmp_path/'a.png')
    with pytest.raises(ValueError) as e: read_objects({'a.png':(1,2,9,9), './a.png':(1,2,9,9)}, images=tmp_path)
    says(e, "'a.png'", "'./a.png'")

def test_links_are_followed_and_keep_their_names(tmp_path):
    blob = put(tmp_path/'blobs'/'f00', format='PNG')
    link = tmp_path/'imgs'/'cat.png'
    link.parent.mkdir()
    link.symlink_to(blob)
    assert read_objects({'imgs/cat.png':(10,5,30,10)}).has(link) # by its name, not by that of the blob
    assert read_objects({str(blob):(10,5,30,10)}).has(link)

def test_many_names_are_found_fast(tmp_path):
    objects = read_objects({f'c{i%100}/{i//100}.png':(.1,.1,.5,.5) for i in range(5_000)})
    files = [f'/data/train/c{i%100}/{i//100}.png' for i in range(5_000)]
    began = time.perf_counter()
    found = objects._places(files)[1]
    assert time.perf_counter()-began<5 and all(found)

# ---- tables

def csv(tmp_path, text, name='boxes.csv', **kwargs):
    (tmp_path/name).write_text(text, **kwargs)
    return tmp_path/name

@pytest.mark.parametrize('text', [
    'file,left,top,width,height\ncat.png,10,5,20,5\n', 'file,x,y,w,h\ncat.png,10,5,20,5\n', 'file,x0,y0,x1,y1\ncat.png,10,5,30,10\n',
    'xmin,xmax,ymin,ymax,label,file\n10,30,5,10,cat,cat.png\n', 'file,x0,y0,x1,y1\ncat.png,.25,0.25,.75,.5\n',
    'file,left,top,width,height\ncat.png,.25,.25,.5,.25\n', 'File, X0 ,Y0,X1,Y1\n cat.png , 10,5,30,10\n',
    'file;x0;y0;x1;y1\ncat.png;10;5;30;10\n', 'file,x0,y0,x1,y1\nimgs\\cat.png,10,5,30,10\n',
    'file,x0,y0,x1,y1\n.\\imgs\\cat.png,10,5,30,10\n',
    'file,x0,y0,x1,y1\nC:\\me\\imgs\\cat.png,10,5,30,10\n', 'file,x0,y0,x1,y1\ncat.png,10,5,20,10\ncat.png,20,5,30,10\n',
    'file,x0,y0,x1,y1\ncat.png,10,5,30,10\ncat.png,,,,\ndog.png,,,,\n'])
def test_tables(img, tmp_path, text):
    f = csv(tmp_path, text)
    assert (mask_of(f, img)==square()).all() and (mask_of(str(f), img)==square()).all() and len(read_objects(f))==1

def test_table_of_excel(img, tmp_path):
    assert (mask_of(csv(tmp_path, 'file;x0;y0;x1;y1\ncat.png;10;5;30;10\n', encoding='utf-8-sig'), img)==square()).all()

def test_one_number_over_1_makes_a_table_one_of_pixels(img, tmp_path):
    f = csv(tmp_path, 'file,left,top,width,height\ncat.png,0,0,1,1\ndog.png,10,5,20,5\n')
    assert mask_of(f, img).nonzero()[0].tolist()==[0] and mask_of(f, img).sum()==1

def test_names_are_counted_from_the_table_or_from_images(tmp_path):
    here,there = put(tmp_path/'1.png'),put(tmp_path/'other'/'1.png')
    f = csv(tmp_path, 'file,x0,y0,x1,y1\n1.png,10,5,30,10\n')
    assert read_objects(f).known([here,there])==[0] and read_objects(f, images=tmp_path/'other').known([here,there])==[1]

@pytest.mark.parametrize('text,texts', [
    ('a,b\n1,2\n', ('has no columns for a box','left,top,width,height','Available: a, b')),
    ('name,x0,y0,x1,y1\ncat.png,1,2,3,4\n', ("has no column 'file'",)),
    ('file,x0,y0,x1,y1\ncat.png,1,2,x,4\n', ('x1=x','of cat.png','row 2','four numbers')),
    ('file,x0,y0,x1,y1\ncat.png,1,2,,4\n', ('x1=,','row 2','four numbers')),
    ('file,x0,y0,x1,y1\ncat.png,1,2,nan,4\n', ('x1=nan','not finite')),
    ('file,x0,y0,x1,y1\ncat.png,1,2,5,4\ncat.png,5,5,5,9\n', ('row 3','it is 0 wide and 4 high')),
    ('file,x,y,w,h\ncat.png,1,2,-5,4\n', ('w=-5','it is -5 wide')), ('file,x,y,w,h\ncat.png,1,2,0,4\n', ('it is 0 wide',)),
    ('file,x0,y0,x1,y1\ncat.png,.1,.1,.5,1.01\n', ('less than a pixel',)), ('file,x0,y0,x1,y1\n ,1,2,3,4\n', ('Row 2','has no file name')),
    ('file,x0,y0,x1,y1\n\n \n""\n', ('Row 4','has no file name')),
    ('file,x0,y0,x1,y1\ncat.png,,,,\n', ('No object is known',)),
    ('file,x0,y0,x1,y1\n', ('has no rows',)), ('', ('cannot be read as a table',))])
def test_tables_that_cannot_be_meant(tmp_path, text, texts):
    with pytest.raises(ValueError) as e: read_objects(csv(tmp_path, text))
    says(e, *texts)

def test_a_bed_knows_its_shortcut(tmp_path):
    path = digits(tmp_path/'bed', n=60, seed=3)
    files = sorted(path.rglob('*.png'))
    objects = read_objects(path/'about.csv')
    known = [files[i] for i in objects.known(files)]
    assert {o.relative_to(path).parts[0] for o in known}=={'train','valid','flipped'} and len(known)==len(objects)<len(files)
    assert (objects.masks(known, (32,32)).numpy()==regions(path, known)['shortcut']).all()
    assert (objects.masks(known, (8,8)).sum((1,2))==4).all()

# ---- COCO and JSON

def coco(img='cat.png', image=(), **annotation):
    return dict(images=[dict(id=1, file_name=img, **dict(image)), dict(id=2, file_name='none.png')],
                annotations=[dict(image_id=1, id=9, category_id=3)|annotation], categories=[])

@pytest.mark.parametrize('data', [
    coco(bbox=[10,5,20,5]), coco(image=dict(width=40, height=20), bbox=[10,5,20,5]), coco(bbox=[10,5,20,5], segmentation=[]),
    coco(image=dict(width=400, height=200), bbox=[100,50,200,50]), coco('sub\\cat.png', bbox=[10,5,20,5]) | {'info':{}},
    coco(segmentation=[[10,5,30,5,30,10,10,10]]), coco(bbox=[0,0,40,20], segmentation=[[10,5,20,5,20,10,10,10],[20,5,30,5,30,10,20,10]]),
    coco(image=dict(width=80, height=40), segmentation=[[20,10,60,10,60,20,20,20]])])
def test_coco(tmp_path, data):
    f = put(tmp_path/'elsewhere'/'sub'/'cat.png')
    (tmp_path/'coco.json').write_text(json.dumps(data), encoding='utf-8-sig')
    for o in (tmp_path/'coco.json', str(tmp_path/'coco.json'), json.dumps(data)):
        assert (mask_of(o, f)==square()).all()
        assert len(read_objects(o))==1 and not read_objects(o).has(put(tmp_path/'none.png'))

def test_coco_boxes_and_polygons_of_one_image_are_one_object(tmp_path):
    f,data = put(tmp_path/'cat.png'),coco(bbox=[10,5,10,5])
    data['annotations'].append(dict(image_id=1, segmentation=[[20,5,30,5,30,10,20,10]]))
    assert (mask_of(json.dumps(data), f)==square()).all()

@pytest.mark.parametrize('data,texts', [
    (coco(segmentation=dict(counts='x', size=[20,40]), iscrowd=1, bbox=[1,2,3,4]), ('of cat.png','run-length','annToMask','leave')),
    (coco(bbox=[1,2,0,4]), ('[1, 2, 0, 4]','of cat.png','no area','[x, y, width, height]')), (coco(bbox=[1,2,3]), ('four numbers',)),
    (coco(bbox=[]), ('four numbers',)), (coco(bbox=['1','2','3','4']), ('four numbers',)),
    (coco(bbox=[.1,.2,.3,.4]), ('less than a pixel',)),
    (coco(segmentation=[[1,2,3,4]]), ('three points','of cat.png')), (coco(segmentation=[[1,2,3,4,5,6,7]]), ('three points',)),
    (coco(segmentation=[1,2,3,4,5,6]), ('three points',)), (coco(segmentation=[[1,2,3,4,5,None]]), ('three points',)),
    (coco(segmentation=[[1,2,3,4,5,float('inf')]]), ('three points','inf')), (coco(), ('bbox',)),
    (coco(image_id=5, bbox=[1,2,3,4]), ('for the image 5',)), (dict(annotations=[]), ("'images'",)),
    (dict(images=[dict(id=1, file_name='a.png')], info={}), ("'annotations'",)), (dict(images=3, annotations=[]), ('COCO',)),
    (dict(images=[], annotations=[]), ('No object is known',)), (dict(images=[{}], annotations=[]), ("'id'",))])
def test_coco_that_cannot_be_meant(data, texts):
    with pytest.raises(ValueError) as e: read_objects(json.dumps(data))
    says(e, *texts)

def test_a_size_in_coco_that_is_turned_is_refused(img):
    objects = read_objects(json.dumps(coco(image=dict(width=20, height=40), bbox=[5,5,10,20])))
    with pytest.raises(ValueError) as e: objects.known([img])
    says(e, img, '20×40', '40×20', 'rotated')

def test_json_of_boxes(img, tmp_path):
    text = json.dumps({'imgs/cat.png':[[.25,.25,.75,.5]], 'x.png':[]})
    (tmp_path/'boxes.json').write_text(text)
    for o in (text, f'\n {text}\n', tmp_path/'boxes.json'): assert (mask_of(o, img)==square()).all() and len(read_objects(o))==1
    put(tmp_path/'m.png', (40,20), 'L')
    Image.fromarray(square()).save(tmp_path/'m.png')
    (tmp_path/'masks.json').write_text('{"cat.png": "m.png"}')
    assert (mask_of(tmp_path/'masks.json', img)==square()).all(), 'the path of a mask is counted from the JSON file'

def test_broken_json(tmp_path):
    (tmp_path/'a.json').write_text('{"a": [1,')
    with pytest.raises(ValueError) as e: read_objects(tmp_path/'a.json')
    says(e, tmp_path/'a.json', 'is not JSON')
    (tmp_path/'a.json').write_bytes(b'{"\xff": 1}')
    with pytest.raises(ValueError) as e: read_objects(tmp_path/'a.json')
    says(e, 'is not encoded in UTF-8')
    with pytest.raises(ValueError, match='is not finite'): read_objects('{"a.png": [1, 2, NaN, 4]}')

# ---- masks

def saved(tmp_path, im, name='cat.png', **kwargs):
    (tmp_path/'masks').mkdir(exist_ok=True)
    im.save(tmp_path/'masks'/name, **kwargs)
    return tmp_path/'masks'

on = square()
def rgb(inside, outside=(0,0,0)): return Image.fromarray(np.where(on[...,None], inside, outside).astype(np.uint8))
def with_alpha(colour, alpha):
    im = colour.convert('RGBA')
    im.putalpha(alpha)
    return im
def palette():
    im = Image.fromarray(np.where(on, 0, 1).astype(np.uint8)).convert('P')
    im.putpalette([255,255,255, 0,0,0]) # number 0 is white, number 1 is black
    return im

masks = {
    '1':Image.fromarray(on), 'L':Image.fromarray(on.astype(np.uint8)), '16-bit':Image.fromarray(on.astype(np.uint16)*256),
    '32-bit':Image.fromarray(on.astype(np.int32)*70_000), 'one channel':rgb((0,0,1)), 'palette':palette(),
    'alpha':with_alpha(rgb((0,0,0), (255,255,255)), Image.fromarray(on.astype(np.uint8)*9)),
    'constant alpha':with_alpha(rgb((9,9,9)), Image.new('L', (40,20), 255)),
    'no alpha at all':with_alpha(rgb((9,9,9)), Image.new('L', (40,20), 0)),
    'grey and alpha':with_alpha(rgb((7,7,7), (7,7,7)), Image.fromarray(on.astype(np.uint8)*255)).convert('LA')}

@pytest.mark.parametrize('kind', masks)
def test_a_mask_of_every_mode(img, tmp_path, kind):
    name = 'cat.tif' if kind=='32-bit' else 'cat.png'
    folder = saved(tmp_path, masks[kind], name)
    assert (mask_of(folder, img)==on).all() and (mask_of({'cat.png':folder/name}, img)==on).all()
    assert (mask_of({'cat.png':masks[kind]}, img)==on).all()

@pytest.mark.parametrize('name,im', [('cat.tif',rgb((200,0,0)).convert('CMYK')), ('cat.tiff',Image.fromarray(on.astype(np.float32)*.3)),
    ('cat.gif',Image.fromarray(on)), ('cat.bmp',Image.fromarray(on)), ('cat.PNG',Image.fromarray(on))])
def test_a_mask_of_other_formats(img, tmp_path, name, im): assert (mask_of(saved(tmp_path, im, name), img)==on).all()

def test_the_noise_of_a_jpeg_is_no_object(tmp_path):
    m = np.zeros((120,200), bool)
    m[33:77,51:130] = True
    f = put(tmp_path/'a.png', (200,120))
    folder = saved(tmp_path, Image.fromarray(m.astype(np.uint8)*255), 'a.jpg', quality=60)
    assert (np.asarray(Image.open(folder/'a.jpg'))!=0).sum()>m.sum()+200
    assert (mask_of(folder, f, (120,200))!=m).sum()<20

def test_transparency_of_a_palette_is_alpha():
    im = Image.fromarray(on.astype(np.uint8)).convert('P')
    im.putpalette([9,9,9, 9,9,9])
    im.info['transparency'] = 0
    assert (_drawn(im)==on).all()

def test_masks_are_found_by_layout_then_by_stem(tmp_path):
    cat,dog = (put(tmp_path/'train'/o/'1.jpg') for o in ('cat','dog'))
    for o in ('cat','dog'):
        (tmp_path/'deep'/o).mkdir(parents=True)
        Image.fromarray(on if o=='cat' else ~on).save(tmp_path/'deep'/o/'1.png')
    a,b = read_objects(tmp_path/'deep').masks([cat,dog], (20,40)).numpy()
    assert (a==on).all() and (b==~on).all()
    flat = saved(tmp_path, Image.fromarray(on), '1.png')
    assert read_objects(flat).known([cat])==[0]
    with pytest.raises(ValueError, match=r"'1\.png' could mean .*cat.*dog"): read_objects(flat).known([cat,dog])
    assert read_objects(tmp_path/'deep').known([put(tmp_path/'bird'/'1.jpg')])==[], 'the mask of a cat is none of a bird'
    Image.fromarray(on).save(flat/'1.bmp')
    with pytest.raises(ValueError, match="'1.bmp' or '1.png'"): read_objects(flat).has(cat)

def test_masks_beside_images_given(tmp_path):
    train,valid = (put(tmp_path/o/'cat'/'1.png') for o in ('train','valid'))
    (tmp_path/'masks'/'cat').mkdir(parents=True)
    Image.fromarray(on).save(tmp_path/'masks'/'cat'/'1.png')
    with pytest.raises(ValueError, match='could mean'): read_objects(tmp_path/'masks').known([train,valid])
    assert read_objects(tmp_path/'masks', images=tmp_path/'train').known([train,valid])==[0]

def test_empty_folder(tmp_path):
    with pytest.raises(ValueError) as e: read_objects(tmp_path)
    says(e, tmp_path, 'no mask image')

@pytest.mark.parametrize('size,fits', [((40,20),True),((80,40),True),((400,208),True),((20,40),False),((40,40),False),((400,220),False)])
def test_a_mask_of_another_shape_is_refused(img, tmp_path, size, fits):
    m = np.zeros(size[::-1], bool)
    m[:size[1]//2] = True
    objects = [read_objects({'cat.png':m}), read_objects(saved(tmp_path, Image.fromarray(m)))]
    for o in objects:
        if fits: assert o.masks([img], (2,3))[0].tolist()==[[True]*3,[False]*3]
        else:
            with pytest.raises(ValueError) as e: o.known([img])
            says(e, img, f'{size[0]}×{size[1]}', '40×20', 'another image')
    if not fits: assert str(tmp_path/'masks'/'cat.png') in str(e.value)

@pytest.mark.parametrize('data', [b'', b'no image', b'\x89PNG\r\n\x1a\n' + b'\0'*40])
def test_a_corrupt_mask_or_image_is_told(img, tmp_path, data):
    (tmp_path/'masks').mkdir()
    (tmp_path/'masks'/'cat.png').write_bytes(data)
    with pytest.raises(OSError) as e: read_objects(tmp_path/'masks').known([img])
    says(e, tmp_path/'masks'/'cat.png', 'cannot be read as an image', 'leave it out')
    img.write_bytes(data)
    with pytest.raises(OSError) as e: read_objects({'cat.png':(10,5,30,10)}).masks([img], (2,2))
    says(e, img, 'cannot be read as an image')

def test_a_truncated_mask_and_a_missing_image_are_told(img, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0,255,(20,40), dtype=np.uint8))
    f = saved(tmp_path, noise)/'cat.png'
    f.write_bytes(f.read_bytes()[:300])
    with pytest.raises(OSError, match='cannot be read as an image'): read_objects(f.parent).has(img)
    img.unlink()
    with pytest.raises(OSError, match='there is no such file'): read_objects({'cat.png':(10,5,30,10)}).has(img)

@pytest.mark.parametrize('mode', ['1','L','P','LA','RGBA','CMYK','I;16','F'])
def test_images_of_every_mode_and_of_one_pixel(tmp_path, mode):
    f = put(tmp_path/('a.tif' if mode in ('CMYK','F') else 'a.png'), (1,1), mode)
    objects = read_objects({f.name:(.2,.2,.7,.7)})
    assert objects.has(f) and objects.masks([f], (4,4)).sum()==4 and objects.masks([f], (1,1)).all()
    with pytest.warns(ProxyWarning): assert read_objects({f.name:[(0,0,2,2)]}).known([f])==[]
    plt.close(show_objects(objects, [f])[0].figure)
    assert draw_boxes([f])._repr_html_().count('data:image/jpeg;base64,')==1

def test_a_turned_photograph_is_not_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    f = put(tmp_path/'a.jpg', (40,20), exif=exif)
    assert (mask_of({'a.jpg':(10,5,30,10)}, f)==square()).all() and (mask_of({'a.jpg':square()}, f)==square()).all()

# ---- pictures

def outlines(ax): # of each line its corners
    return [np.round(p, 3) for c in ax.collections for p in c.get_paths() if len(p.vertices) for p in [p.vertices]]

def test_pictures_have_an_outline_where_the_object_is(tmp_path):
    files = [put(tmp_path/f'{o}.png') for o in ('cat','dog')]
    axs = show_objects({'cat.png':(10,5,30,10)}, files, nrows=1, size=1)
    a,b = axs
    assert [o.get_title() for o in axs]==['cat.png','dog.png: unknown'] and not b.collections and len(a.collections)==2
    for line in outlines(a):
        assert np.allclose(line.min(0), [9.5,4.5], atol=.1) and np.allclose(line.max(0), [29.5,9.5], atol=.1)
    assert a.figure.get_size_inches().tolist()==[2,1]
    plt.close(a.figure)

def test_an_object_at_the_border_has_a_closed_outline(img):
    ax, = show_objects({'cat.png':(0,0,30,20)}, img)
    line = outlines(ax)[0]
    assert np.allclose(line[0], line[-1])
    assert np.allclose(line.min(0), [-.5,-.5], atol=.1) and np.allclose(line.max(0), [29.5,19.5], atol=.1)
    plt.close(ax.figure)

def test_corners_stay_corners_in_a_tiny_image(tmp_path):
    ax, = show_objects({'a.png':(1,1,3,3)}, put(tmp_path/'a.png', (4,4)))
    line = outlines(ax)[0]
    for corner in ((.5,.5),(2.5,.5),(.5,2.5),(2.5,2.5)): assert np.linalg.norm(line-corner, axis=1).min()<.02
    plt.close(ax.figure)

def test_pictures_of_nothing_are_refused():
    with pytest.raises(ValueError, match='no file to show'): show_objects({'a.png':(.1,.1,.2,.2)}, [])

def test_16_bits_are_seen(tmp_path):
    f = tmp_path/'a.png'
    Image.fromarray((np.arange(800).reshape(20,40)+30_000).astype(np.uint16)).save(f)
    ax, = show_objects({'a.png':(10,5,30,10)}, f)
    x = np.asarray(ax.images[0].get_array())
    assert x.min()==0 and x.max()==255 and len(np.unique(x))>200
    plt.close(ax.figure)

# ---- drawing

def data_of(html): return json.loads(re.search(r'of (\[\[.*\]\])\) \{', html)[1])

def test_drawing_embeds_small_pictures_under_names_that_can_be_told_apart(tmp_path):
    import base64, io
    files = [put(tmp_path/'train'/o/'1.png', (900,300)) for o in ('cat','dog')]
    w = draw_boxes(files)
    html = w._repr_html_()
    data = data_of(html)
    assert [n for n,_ in data]==['cat/1.png','dog/1.png'] and repr(w)=='2 images to draw boxes on: show this object in a notebook.'
    for _,src in data: assert Image.open(io.BytesIO(base64.b64decode(src.split(',')[1]))).size==(320,107)
    assert [n for n,_ in data_of(draw_boxes(files[0])._repr_html_())]==['1.png']
    assert not re.search(r'https?:|src="|import |fetch\(', html) and str(tmp_path) not in html
    ids = [re.search('id="([^"]+)"', o._repr_html_())[1] for o in (w,w,draw_boxes(files))]
    assert len(set(ids))==3 and all(re.fullmatch('[a-z][a-z0-9]+', o) for o in ids)

def test_what_is_drawn_is_found_again(tmp_path):
    files = [put(tmp_path/'train'/o/'1.png') for o in ('cat','dog')]
    names = [n for n,_ in data_of(draw_boxes(files)._repr_html_())]
    objects = read_objects(json.dumps({names[1]:[[.25,.25,.75,.5]]}))
    assert objects.known(files)==[1] and (objects.masks(files[1:], (20,40))[0].numpy()==square()).all()

evil = '<b>__DATA__ __ID__ &amp; "\'\u2028]]) {.png'

def test_names_stay_names(tmp_path):
    files = [put(tmp_path/evil), put(tmp_path/'<'/'script>.png')]
    html = draw_boxes(files)._repr_html_()
    assert html.count('<script')==1 and html.count('</script')==1 and '<b>' not in html and html.endswith('</script>')
    src = re.findall(r'\["((?:[^"\\]|\\.)*)", "data:', html)
    assert [json.loads(f'"{o}"') for o in src]==[evil,'</script>.png']

@pytest.mark.parametrize('n', [0,21])
def test_drawing_wants_a_few_images(tmp_path, n):
    with pytest.raises(ValueError) as e: draw_boxes([put(tmp_path/f'{i}.png') for i in range(n)])
    says(e, f'There are {n} images', '1 to 20')

def test_drawing_shows_a_file_once_and_tells_a_corrupt_one(img):
    assert len(data_of(draw_boxes([img,str(img)])._repr_html_()))==1
    img.write_bytes(b'x')
    with pytest.raises(OSError, match='cannot be read as an image'): draw_boxes([img])._repr_html_()

@in_browser
def test_drawing_in_a_browser(tmp_path):
    files = [put(tmp_path/'imgs'/o, (400,200)) for o in ('cat.png',evil)]
    w = draw_boxes(files)
    (tmp_path/'page.html').write_text(f'<!doctype html><meta charset="utf-8">{w._repr_html_()}{w._repr_html_()}', encoding='utf-8')
    with Page(tmp_path/'page.html', tmp_path/'profile') as p:
        p.js('Promise.all([...document.images].map(o => o.decode()))')
        text = lambda i=0: p.js(f"document.querySelectorAll('textarea')[{i}].value")
        def drag(i, x0, y0, x1, y1):
            l,t,w,h = p.js(f"(o => [o.left, o.top, o.width, o.height])(document.querySelectorAll('canvas')[{i}].getBoundingClientRect())")
            p.mouse(l+x0*w, t+y0*h, 'mousePressed', button='left', clickCount=1)
            p.mouse(l+x1*w, t+y1*h, button='left', buttons=1)
            p.mouse(l+x1*w, t+y1*h, 'mouseReleased', button='left', clickCount=1)
        assert text()=='{}' and p.js("[...document.querySelectorAll('figcaption')].map(o => o.textContent)")==['cat.png',evil]*2
        drag(0, .25,.25,.75,.5)
        drag(1, .9,.8,.5,.2) # from the right below
        drag(0, .8,.6,.9,1.5) # out of the image
        assert json.loads(text())=={'cat.png':[[.25,.25,.75,.5],[.8,.6,.9,1]], evil:[[.5,.2,.9,.8]]} and text(1)=='{}'
        drag(0, .85,.7,.85,.7) # a click in the second box
        drag(0, .1,.9,.1,.9) # a click beside all
        assert json.loads(text())=={'cat.png':[[.25,.25,.75,.5]], evil:[[.5,.2,.9,.8]]}
        p.js("document.querySelector('button').click()")
        assert p.js("(o => o===document.activeElement && o.selectionEnd===o.value.length)(document.querySelector('textarea'))")
        objects = read_objects(text())
        assert objects.known(files)==[0,1] and (objects.masks(files[:1], (20,40))[0].numpy()==square()).all()
        drag(0, .3,.3,.9,.9)
        drag(0, .5,.4,.5,.4) # in both boxes: the later one goes
        assert json.loads(text())['cat.png']==[[.25,.25,.75,.5]]
        drag(0, .5,.4,.5,.4)
        assert list(json.loads(text()))==[evil] and not p.said
