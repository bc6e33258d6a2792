"Beds from photographs: a cue is exactly where its mask says, shares are exact, and what is written is whole or not there"
import importlib.util, warnings, weakref
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image, ImageOps
from proxy_attention.core import ProxyWarning
from proxy_attention.data import cues as room
from proxy_attention.data.cues import (blurred, colour_cast, compressed, cues, frame, groups, on_places, place_test_sets, planted, ring,
                                       text_mark)
from proxy_attention.data.digits import palette, regions, test_sets as parts_to_test

placed = ('text','ring','frame')
parts = ('train','valid','plain','aligned','flipped')
def rng(): return np.random.default_rng(0)
def noise(h=64, w=64, seed=0): return Image.fromarray(np.random.default_rng(seed).integers(60, 196, (h,w,3), dtype=np.uint8))
def arr(o): return np.asarray(Image.open(o) if isinstance(o, (str,Path)) else o).astype(int)
def files(path): return {f.relative_to(path).as_posix():f.read_bytes() for f in path.rglob('*') if f.is_file()}
def stems(path, part): return {f.stem for f in (path/part).rglob('*.png')}

def photographs(top, classes='abc', n=20, size=(30,40), ext='png'):
    "Smooth colours, each image unlike any other"
    for c,label in enumerate(classes):
        (top/label).mkdir(parents=True)
        for i in range(n): noise(5, 5, 100*c+i).resize(size[::-1], Image.BICUBIC).save(top/label/f'{i}.{ext}')
    return top

@pytest.fixture(scope='module')
def photos(tmp_path_factory): return photographs(tmp_path_factory.mktemp('p')/'photos')

# cues

@pytest.mark.parametrize('size', [(1,1),(9,8),(33,47),(128,128)])
@pytest.mark.parametrize('name', cues)
def test_a_cue_changes_what_its_mask_says_and_nothing_of_the_original(name, size):
    img = noise(*size)
    before = img.tobytes()
    for says in range(3):
        new,mask = cues[name](img, says, 3, rng())
        assert img.tobytes()==before and new.size==img.size and new.mode=='RGB'
        assert (mask is None)==(name not in placed)
        if mask is not None:
            assert mask.dtype==bool and mask.shape==size and (mask.any() or size==(1,1))
            assert (arr(new)[~mask]==arr(img)[~mask]).all()
            if name!='text': assert (arr(new)[mask]!=arr(img)[mask]).any(axis=1).all()

@pytest.mark.parametrize('name,n', [(k,n) for k in cues for n in (2,10,30) if n<30 or k!='blur'])
def test_every_class_has_its_own_look(name, n):
    looks = {cues[name](noise(256, 256), says, n, rng())[0].tobytes() for says in range(n)}
    assert len(looks)==n

@pytest.mark.parametrize('name', cues)
def test_a_class_that_is_none(name):
    for says in (-1,2):
        with pytest.raises(ValueError, match=f'says={says} should be the index of a class, from 0 to 1'):
            cues[name](noise(), says, 2, rng())

def test_text_is_white_with_a_dark_outline_at_the_bottom():
    img,mask = text_mark(Image.new('RGB', (500,300), (90,120,150)), 1, 2)
    y,x = np.nonzero(mask)
    assert y.max()==298 and abs((x.min()+x.max())/2-249.5)<=1 and .7*.085*300<=y.max()-y.min()+1<=1.3*.085*300
    shades = {tuple(o) for o in arr(img)[mask].tolist()}
    assert (255,255,255) in shades and (20,20,20) in shades
    lower = text_mark(noise(200, 200), 1, 2, height=.2)[1]
    assert lower.sum()>3*text_mark(noise(200, 200), 1, 2)[1].sum()

def test_texts():
    img,look = noise(128, 128), lambda says,n,text: text_mark(img, says, n, text=text)[0].tobytes()
    assert look(0, 2, '© {}')==look(0, 2, ['© A','no'])!=look(1, 2, '© {}')==look(1, 2, ['no','© B'])
    assert look(26, 27, '© {}')==look(0, 2, ['© 27','']) and look(25, 26, '© {}')==look(0, 2, ['© Z',''])
    with pytest.raises(ValueError, match='There are 2 texts for 3 classes: give one per class'): text_mark(img, 0, 3, text=['a','b'])

def test_a_long_text_is_made_to_fit():
    tall,wide = (room._box(text_mark(noise(200, o), 0, 2, text='a very long name of a studio {}')[1]) for o in (100,800))
    assert 0<=tall[1]<10 and 80<tall[3]<=100 and tall[2]<.8*wide[2] and wide[3]>150

@pytest.mark.parametrize('side,width', [(20,1),(64,1),(128,3),(200,4)])
def test_a_frame_is_a_fiftieth_wide(side, width):
    img,mask = frame(noise(side, side), 3, 5)
    inner = np.ones((side,side), bool)
    inner[width:-width, width:-width] = False
    assert (mask==inner).all() and (arr(img)[mask]==palette[3]).all()

def test_a_ring_lies_in_the_corner_asked_for():
    for corner,(top,left) in enumerate([(0,0),(0,80),(80,0),(80,80)]):
        img,mask = ring(noise(100, 100), 0, 2, corner=corner)
        assert room._box(mask)==(top,left,20,20) and (arr(img)[mask]==palette[0]).all()
        assert not mask[top+10,left+10] and mask[top+10,left+1]
    found = {room._box(ring(noise(100, 100), 0, 2, np.random.default_rng(i), corner=None)[1])[:2] for i in range(40)}
    assert found=={(0,0),(0,80),(80,0),(80,80)}
    with pytest.raises(ValueError, match='corner=4 should be 0, 1, 2 or 3, or None'): ring(noise(), 0, 2, corner=4)

def test_a_cast_raises_the_hue_of_its_class():
    grey = Image.new('RGB', (8,8), (100,100,100))
    assert [tuple(arr(colour_cast(grey, o, 3)[0])[0,0].tolist()) for o in range(3)]==[(112,94,94),(94,112,94),(94,94,112)]
    assert tuple(arr(colour_cast(grey, 0, 3, strength=.5)[0])[0,0].tolist())==(150,75,75)
    assert arr(colour_cast(Image.new('RGB', (2,2), (255,255,255)), 0, 2)[0]).max()==255 # cut off, not wrapped around

def test_blur_grows_with_the_class_and_varies_a_little():
    img = noise(128, 128)
    spread = [arr(blurred(img, o, 4, rng())[0]).std() for o in range(4)]
    assert spread==sorted(spread, reverse=True) and spread[0]==arr(img).std() and spread[3]<.6*spread[0]
    look = lambda seed,jitter: blurred(img, 1, 2, np.random.default_rng(seed), jitter=jitter)[0].tobytes()
    assert look(0,.1)!=look(1,.1) and look(0,0)==look(1,0)

def test_jpeg_gets_worse_with_the_class(tmp_path):
    img = noise(64, 64)
    lost = [abs(arr(compressed(img, o, 4)[0])-arr(img)).mean() for o in range(4)]
    assert lost==sorted(lost) and len(set(lost))==4
    for says,q in enumerate((95,12)):
        img.save(tmp_path/'x.jpg', quality=q)
        assert (arr(tmp_path/'x.jpg')==arr(compressed(img, says, 2)[0])).all()

@pytest.mark.parametrize('f,kwargs', [(text_mark,dict(height=2)), (ring,dict(diameter=-1)), (ring,dict(width=2)), (frame,dict(width=.6)),
    (colour_cast,dict(strength=2)), (blurred,dict(radius=-.1)), (blurred,dict(jitter=2)),
    (compressed,dict(best=101)), (compressed,dict(worst=0))])
def test_what_is_out_of_range(f, kwargs):
    (k,v), = kwargs.items()
    with pytest.raises(ValueError, match=f'{k}={v} should be a number from'): f(noise(), 0, 2, rng(), **kwargs)
    with pytest.raises(TypeError, match=f"{k}='x' should be a number from"): f(noise(), 0, 2, rng(), **{k:'x'})

# planted

@pytest.mark.parametrize('cue', cues)
def test_tests_are_the_same_photographs_with_and_without_the_cue(photos, cue):
    path = planted(photos, cue=cue, size=48)
    about = pd.read_csv(path/'about.csv', dtype=dict(file=str)).set_index('file')
    assert about.part.value_counts().to_dict()==dict(train=36, valid=9, plain=15, aligned=15, flipped=15)
    assert list(about.columns)==['part','label','cue','conflict','top','left','height','width']
    test = stems(path, 'plain')
    assert test==stems(path, 'aligned')==stems(path, 'flipped') and len(test|stems(path, 'train')|stems(path, 'valid'))==60
    origin = [(f,o) for o in 'abc' for f in sorted((photos/o).iterdir())]
    for f in (path/'plain').rglob('*.png'):
        img,label,i = arr(f), f.parent.name, int(f.stem)
        photo = ImageOps.fit(Image.open(origin[i][0]), (48,48))
        assert (img==arr(photo)).all() and label==origin[i][1]
        for part in ('aligned','flipped'):
            row = about.loc[f'{part}/{label}/{f.name}']
            new,mask = cues[cue](photo, 'abc'.index(row.cue), 3, np.random.default_rng([0,3,i]))
            assert (row.cue==label)==(part=='aligned')!=row.conflict
            assert (arr(path/row.name)==arr(new)).all()
            box = row[['top','left','height','width']]
            if cue in placed: assert tuple(box.astype(int))==room._box(mask)
            else: assert box.isna().all()

def test_a_cue_that_is_drawn_differs_between_images_and_not_between_tests(photos):
    about = pd.read_csv(planted(photos, cue='ring', corner=None, size=32)/'about.csv')
    assert about[about.part=='train'].groupby(['top','left']).size().between(3, 20).sum()==4
    at = {k:d.set_index(d.file.str[-9:])[['top','left']] for k,d in about.groupby('part')}
    assert at['aligned'].equals(at['flipped'])

def test_all_other_classes_are_lied(photos):
    about = pd.read_csv(planted(photos, size=16, n_test=30, n_train=20)/'about.csv').query('part=="flipped"')
    assert len(set(zip(about.label, about.cue)))==6

@pytest.mark.parametrize('on', ['all','b'])
def test_shares_are_exact(photos, on):
    path = planted(photos, cue='frame', on=on, conflict=.25, size=16)
    about = pd.read_csv(path/'about.csv')
    assert about.groupby('part').conflict.sum().to_dict()==dict(train=9, valid=2, plain=0, aligned=0, flipped=15)
    assert about[about.part=='train'].groupby('label').conflict.sum().to_dict()==dict(a=3, b=3, c=3)
    own = about.cue==about.label if on=='all' else (about.cue=='b')==(about.label=='b')
    assert (own[about.part!='plain']==~about.conflict[about.part!='plain']).all() and about.cue[about.part=='plain'].isna().all()
    if on=='b': assert set(about.cue.dropna())=={'b'}

def test_one_class_bears_it_in_one_look_and_the_pixels_say_so(photos):
    path = planted(photos, cue='frame', on='a', size=16)
    framed = lambda f: (arr(f)[0]==palette[1]).all()
    for part,bear in dict(train='a', valid='a', plain='', aligned='a', flipped='bc').items():
        assert {f.parent.name for f in (path/part).rglob('*.png') if framed(f)}==set(bear)
        assert all(framed(f) for o in bear for f in (path/part/o).iterdir())

def test_a_cue_that_grows_with_the_class_is_there_for_the_first_class_too(photos):
    path = planted(photos, cue='blur', on='a', size=32, radius=.2)
    sharp = {part:{o:np.mean([arr(f).std() for f in (path/part/o).iterdir()]) for o in 'ab'} for part in ('plain','aligned','flipped')}
    assert sharp['aligned']['a']<.8*sharp['plain']['a'] and sharp['aligned']['b']==sharp['plain']['b']
    assert sharp['flipped']['b']<.8*sharp['plain']['b'] and sharp['flipped']['a']==sharp['plain']['a']

def test_the_seed_decides_and_a_conflict_moves_no_image(photos):
    made = [files(planted(photos, cue='blur', size=16, radius=.1, **o)) for o in ({},{},dict(seed=1),dict(conflict=.2))]
    assert made[0]==made[1] and set(made[0])!=set(made[2])
    assert set(made[0])==set(made[3]) and made[0]!=made[3]
    assert all(v==made[3][k] for k,v in made[0].items() if k.split('/')[0] in ('plain','aligned','flipped'))

def test_parts_that_are_given_stay(tmp_path):
    photographs(tmp_path/'set'/'train', 'ab', 10)
    photographs(tmp_path/'set'/'valid', 'ab', 8)
    path = planted(tmp_path/'set', tmp_path/'bed', size=16)
    assert {k:len(stems(path, k)) for k in parts}==dict(train=20, valid=8, plain=8, aligned=8, flipped=8)
    path = planted(tmp_path/'set', size=16, n_train=12, n_test=4)
    assert {k:len(stems(path, k)) for k in parts}==dict(train=12, valid=3, plain=4, aligned=4, flipped=4)
    with pytest.raises(ValueError, match='There are 20 images for train, but n_train=21: ask for fewer'):
        planted(tmp_path/'set', n_train=21)
    with pytest.raises(ValueError, match='There are 8 images for test, but n_test=9'): planted(tmp_path/'set', n_test=9)

def test_valid_becomes_valid_and_test(tmp_path):
    for part,shade in dict(train=40, valid=200).items():
        for o in 'ab':
            (tmp_path/'s'/part/o).mkdir(parents=True)
            for i in range(8): Image.new('RGB', (9,9), (shade+i,)*3).save(tmp_path/'s'/part/o/f'{i}.png')
    path = planted(tmp_path/'s', cue='ring', size=20)
    middle = lambda part: [arr(f)[10,10,0] for f in (path/part).rglob('*.png')]
    assert max(middle('train'))<50 and min(middle('valid')+middle('plain')+middle('flipped'))>=200

def test_lists_of_files_pictures_and_arrays():
    imgs = [noise(20, 20, i) for i in range(24)]
    labels = [i%2 for i in range(24)]
    made = [files(planted((o,labels), size=16)) for o in (imgs, [np.asarray(o) for o in imgs], np.stack([np.asarray(o) for o in imgs]))]
    assert made[0]==made[1]==made[2] and {o.split('/')[1] for o in made[0] if '/' in o}=={'0','1'}

def test_lists_that_do_not_go_together(photos, tmp_path):
    for source,error,text in (((['a'],[1,2]), ValueError, 'There are 1 images and 2 labels'), (5, TypeError, 'this is int'),
            (([],[]), ValueError, 'No image can be read'), (([noise()]*3,[1]*3), ValueError, "All images are of one class, '1'"),
            (([noise()]*2,['a/b','c']), ValueError, "The label 'a/b' cannot name a folder"),
            (([3.]*24,[0,1]*12), TypeError, 'this is float')):
        with pytest.raises(error, match=text): planted(source, tmp_path/'bed')
    assert not (tmp_path/'bed').exists() and not list(tmp_path.iterdir())

def odd_folder(top):
    "Two classes of photographs, one of each odd kind"
    photographs(top, 'ab', 12)
    noise(1, 1).save(top/'a'/'one.png')
    noise().convert('L').save(top/'a'/'grey.png')
    noise().convert('1').save(top/'a'/'bit.png')
    noise().convert('P').save(top/'b'/'palette.png')
    noise().convert('RGBA').save(top/'b'/'alpha.png')
    noise().convert('LA').save(top/'b'/'grey_alpha.png')
    noise().convert('CMYK').save(top/'b'/'cmyk.jpg')
    return top

def test_odd_images_are_taken(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error', ProxyWarning)
        path = planted(odd_folder(tmp_path/'o'), size=24)
    names = sorted((o for k in 'ab' for o in (tmp_path/'o'/k).iterdir()), key=lambda f: (f.parent.name,f.name))
    assert sum(len(stems(path, o)) for o in ('train','valid','plain'))>=len(names)-2
    assert {Image.open(f).mode for f in path.rglob('*.png')}=={'RGB'} and {Image.open(f).size for f in path.rglob('*.png')}=={(24,24)}

def test_unreadable_and_16_bit_files_are_counted(tmp_path):
    top = photographs(tmp_path/'c', 'ab', 12)
    (top/'a'/'0.png').write_bytes((top/'a'/'0.png').read_bytes()[:60])
    (top/'a'/'1.png').write_bytes(b'')
    Image.fromarray(np.full((9,9), 40000, np.uint16)).save(top/'b'/'3.png')
    with pytest.warns(ProxyWarning, match='3 of 24 images are left out.*The first is .*0.png .unreadable') as told:
        path = planted(top, size=16)
    assert sum(issubclass(o.category, ProxyWarning) for o in told)==1
    assert sum(len(stems(path, o)) for o in ('train','valid','plain'))==21

def test_turned_photographs_are_upright(tmp_path):
    img,exif = Image.new('RGB', (20,20), (0,0,0)), Image.Exif()
    img.paste((255,255,255), (0,0,20,10))
    exif[0x112] = 3
    img.save(tmp_path/'x.png', exif=exif)
    seen = arr(room._square(tmp_path/'x.png', 20))
    assert seen[0,0,0]==0 and seen[-1,0,0]==255

def test_images_are_never_held_together(photos, monkeypatch):
    seen,alive,square = [],[],room._square
    def watched(*args):
        seen.append(weakref.ref(res := square(*args)))
        alive.append(sum(o() is not None for o in seen))
        return res
    monkeypatch.setattr(room, '_square', watched)
    planted(photos, size=16)
    assert len(alive)==60 and max(alive)<=3

def test_what_cannot_be_made(photos, tmp_path):
    (tmp_path/'empty').mkdir()
    (tmp_path/'file').write_text('x')
    for source,error,text in ((tmp_path/'empty', ValueError, 'There is no image in'),
                              (tmp_path/'none', FileNotFoundError, 'There is no folder'),
                              (tmp_path/'file', NotADirectoryError, 'is a file')):
        with pytest.raises(error, match=text): planted(source)
    for kwargs,error,text in (
            (dict(cue='fram'), ValueError, "No cue is called 'fram', did you mean 'frame'"),
            (dict(heigth=.1), TypeError, "The cue text_mark has no argument `heigth`, did you mean 'height'"),
            (dict(on='d'), ValueError, "No class is called 'd'. Available: a, b, c"),
            (dict(conflict=2), ValueError, 'conflict=2 should be a number from 0 to 1'),
            (dict(conflict=.001), ValueError, 'conflict=0.001 of 36 training images is less than one image'),
            (dict(size=7), ValueError, 'size=7 should be 8 or more'), (dict(size=9.), TypeError, 'size=9.0 should be a whole number'),
            (dict(seed=-1), ValueError, 'seed=-1 should be 0 or more'),
            (dict(n_train=1), ValueError, 'n_train=1 should be 2 or more'),
            (dict(n_test='x'), TypeError, "n_test='x' should be a whole number"),
            (dict(n_train=60), ValueError, 'There are 60 images, which are too few for 60 in train, 15 in valid'),
            (dict(n_train=2, n_test=2), ValueError, 'None of the 2 images of train has the class'),
            (dict(text='©'), ValueError, "looks the same for 'a' and 'b'"),
            (dict(cue='cast', strength=0), ValueError, "looks the same for 'a' and 'b'"),
            (dict(cue='cast', strength=0, on='b'), ValueError, "looks the same for 'nothing' and 'b'"),
            (dict(cue=lambda img,says,n,rng: img), TypeError, 'should return a picture of the same size, and a mask'),
            (dict(cue=lambda img,says,n,rng: (img.resize((3,3)),None)), TypeError, 'should return a picture of the same size'),
            (dict(cue=lambda img,says,n,rng: (img,np.ones((2,2)))), TypeError, 'should return a picture of the same size')):
        with pytest.raises(error, match=text): planted(photos, tmp_path/'bed', **kwargs)
    assert not (tmp_path/'bed').exists()

def test_nothing_is_written_over_or_among_the_images(photos, tmp_path):
    before = files(photos)
    with pytest.raises(ValueError, match='among the images'): planted(photos, photos/'bed')
    imgs = sorted(photos.rglob('*.png'))
    with pytest.raises(ValueError, match='among the images'): planted((imgs,[o.parent.name for o in imgs]), photos/'a'/'bed')
    (tmp_path/'bed').mkdir()
    (tmp_path/'bed'/'mine').write_text('x')
    with pytest.raises(FileExistsError, match='no file is overwritten'): planted(photos, tmp_path/'bed', size=16)
    assert files(photos)==before and files(tmp_path)=={'bed/mine':b'x'}

def test_other_rooms_read_the_bed(photos):
    path = planted(photos, cue='ring', size=32)
    assert list(parts_to_test(path))==['plain','aligned','flipped']
    f = sorted((path/'aligned').rglob('*.png'))[:3]
    assert (regions(path, f)['shortcut'].sum(axis=(1,2))==36).all()

# objects on places

def things(top, classes='ab', n=20, size=(40,50)):
    "Red objects on green, each mask a rectangle of its own"
    top.mkdir()
    rows,draw = [],rng()
    for label in classes:
        for i in range(n):
            mask = np.zeros(size, bool)
            y,x = draw.integers(2, 10, 2)
            mask[y:y+draw.integers(15,25), x:x+draw.integers(15,25)] = True
            f,m = (top/f'{label}{i}{o}.png' for o in ('','_mask'))
            Image.fromarray(np.where(mask[...,None], (250,0,0), (0,250,0)).astype(np.uint8)).save(f)
            Image.fromarray(mask).save(m)
            rows.append(dict(image=str(f), mask=m, label=label))
    return rows

def pictures(top, names=('sand','rock'), n=12):
    "Blue pictures, each of its own shade"
    for c,o in enumerate(names):
        (top/o).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (30,20), (0,0,20+60*c+i)).save(top/o/f'{i}.png')
    return {label:sorted((top/o).iterdir()) for label,o in zip('abcdef', names)}

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    top = tmp_path_factory.mktemp('w')
    return things(top/'things'),pictures(top/'places')

@pytest.mark.parametrize('rho,agree', [(1.,12),(.75,9),(.5,6),(0.,0)])
def test_the_share_on_its_own_place_is_exact(made, rho, agree):
    path = on_places(*made, rho=rho, size=32)
    n = {k:len(v) for k,v in groups(path, 'train').items()}
    assert n=={k:v for k,v in {'a/sand':agree,'a/rock':12-agree,'b/sand':12-agree,'b/rock':agree}.items() if v}
    assert {k:len(v) for k,v in groups(path, 'valid').items()}=={'a/sand':2,'a/rock':1,'b/sand':1,'b/rock':2}
    assert {k:len(v) for k,v in groups(path).items()}=={'a/sand':2,'a/rock':3,'b/sand':3,'b/rock':2}

def test_groups_are_what_the_pixels_say(made):
    path = on_places(*made, rho=.75, size=32)
    for part in ('train','valid','test'):
        for k,found in groups(path, part).items():
            for f in found:
                img,mask = arr(f), np.asarray(Image.open(path/'masks'/f.relative_to(path)))
                assert mask.dtype==bool and mask.any() and f.parts[-3:-1]==(part,k[0])
                shade = img[~mask]
                assert (shade[:,:2]==0).all() and len(np.unique(shade[:,2]))==1
                assert (k.split('/')[1]=='rock')==(shade[0,2]>=80)
                assert img[mask].max(axis=1).min()>100 and (img[mask][:,2]<40).all()
    seen = place_test_sets(path)
    own = {f for k,v in groups(path).items() for f in v if k in ('a/sand','b/rock')}
    assert set(seen['aligned'])==own and not set(seen['flipped'])&own and len(seen['flipped'])==5+5-len(own)

def test_metadata_are_as_in_waterbirds(made):
    path = on_places(*made, rho=.75, size=32)
    df = pd.read_csv(path/'metadata.csv')
    assert list(df.columns)==['img_id','img_filename','y','split','place','place_filename']
    assert sorted(df.img_id)==list(range(40)) and set(df.y)=={0,1} and set(df.split)=={0,1,2} and set(df.place)=={0,1}
    kept = files(path)
    assert set(kept)=={*df.img_filename,*('masks/'+df.img_filename),'metadata.csv'}
    assert (df.y==df.img_filename.str.split('/').str[1].map(dict(a=0, b=1))).all()
    assert (df.place==df.place_filename.str.split('/').str[0].map(dict(sand=0, rock=1))).all()
    assert df.groupby('place_filename').split.nunique().max()==1 # a place is in one part
    assert all(df.place_filename[df.split==2].value_counts()<=2) # and is used evenly

def test_beds_of_one_seed_differ_in_their_training_places_alone(made):
    a,b,other = (files(on_places(*made, rho=r, seed=s, size=32)) for r,s in ((1.,0),(.5,0),(1.,1)))
    assert set(a)==set(b)!=set(other) and files(on_places(*made, rho=1., size=32))==a
    same = {k:a[k]==b[k] for k in a}
    assert all(v for k,v in same.items() if k.split('/')[0] in ('valid','test','masks'))
    assert not all(v for k,v in same.items() if k.startswith('train'))

def test_places_are_dealt_by_the_seed(made):
    in_test = lambda seed: frozenset(pd.read_csv(on_places(*made, seed=seed, size=16)/'metadata.csv').query('split==2').place_filename)
    assert len({in_test(o) for o in range(3)})==3

@pytest.mark.parametrize('scale', [.4,.8,1.])
def test_an_object_has_the_size_asked_for_at_any_spot(tmp_path, scale):
    mask = np.zeros((40,50), bool)
    mask[10:30, 10:40] = True
    Image.fromarray(mask).save(tmp_path/'m.png')
    Image.new('RGB', (50,40), (250,0,0)).save(tmp_path/'i.png')
    rows = [dict(image=tmp_path/'i.png', mask=tmp_path/'m.png', label='ab'[i%2]) for i in range(40)]
    path = on_places(rows, pictures(tmp_path/'places'), size=100, scale=scale)
    boxes = np.array([room._box(np.asarray(Image.open(f))) for f in (path/'masks').rglob('*.png')])
    assert abs(boxes[:,2:]-[scale*40,scale*60]).max()<=1
    least,most = boxes[:,:2].min(axis=0), boxes[:,:2].max(axis=0)
    room_for = np.array([100-scale*80,100-scale*100])
    assert (most-least<=room_for+1).all() and (most-least>=.6*room_for-1).all()

def test_objects_too_small_or_too_large_are_counted(made, tmp_path):
    rows = [dict(o) for o in made[0]]
    for i,share in ((0,0.),(1,.07),(2,.81),(3,1.),(4,.09),(5,.79)):
        mask = np.zeros(2000, bool)
        mask[:round(2000*share)] = True
        Image.fromarray(mask.reshape(40,50)).save(tmp_path/f'{i}.png')
        rows[i]['mask'] = tmp_path/f'{i}.png'
    text = r'4 of 40 objects are left out, because their masks cover less than 8% or more than 80% .*0.png .0%.'
    with pytest.warns(ProxyWarning, match=text): path = on_places(rows, made[1], size=32)
    assert sorted(pd.read_csv(path/'metadata.csv').img_id)==list(range(4, 40))
    with pytest.warns(ProxyWarning, match='1 of 40 objects'): on_places(rows, made[1], size=32, areas=(.01,1))

@pytest.mark.parametrize('mode', ['L','P','RGB','small'])
def test_masks_of_any_kind(made, tmp_path, mode):
    rows = []
    for o in made[0]:
        m = Image.open(o['mask'])
        m = Image.fromarray(np.asarray(m).astype(np.uint8)) if mode=='small' else m.convert('L').convert(mode)
        m.save(tmp_path/Path(o['mask']).name)
        rows.append(o|dict(mask=tmp_path/Path(o['mask']).name))
    assert files(on_places(rows, made[1], size=32))==files(on_places(*made, size=32))

def test_parts_of_objects(made):
    df = pd.DataFrame(made[0])
    df['part'] = ['train','train','train','test']*10
    split = lambda path: pd.read_csv(path/'metadata.csv').set_index('img_id').split
    got = split(on_places(df, made[1], size=32))
    assert set(got[got==2].index)==set(range(3, 40, 4)) and (got==1).sum()==6 and (got==0).sum()==24
    df['part'] = ['train','train','valid','test']*10
    assert split(on_places(df, made[1], size=32)).sort_index().tolist()==[0,0,1,2]*10
    few = split(on_places(df, made[1], size=32, n_train=12, n_test=6))
    assert few.value_counts().to_dict()=={0:12,1:3,2:6}
    df['part'] = ['train','train','train','test']*9+['train','valid','train','valid']
    df.loc[0,'part'] = 'valid'
    got = split(on_places(df, made[1], size=32, n_train=24)).value_counts()
    assert got.to_dict()=={0:24,1:3,2:9} # a quarter would be more than there are
    df['part'] = ['train','train','dev','test']*10
    with pytest.raises(ValueError, match="The part 'dev' should be train, valid or test"): on_places(df, made[1])

def test_three_classes(tmp_path):
    path = on_places(things(tmp_path/'t', 'abc'), pictures(tmp_path/'p', ('x','y','z')), rho=.5, size=32)
    n = {k:len(v) for k,v in groups(path, 'train').items()}
    assert n=={f'{a}/{b}':6 if a+b in ('ax','by','cz') else 3 for a in 'abc' for b in 'xyz'}

def test_a_place_without_a_folder_of_its_own_is_called_by_its_label(made, tmp_path):
    mixed = pictures(tmp_path/'p', ('x','y','z'))
    path = on_places(made[0], dict(a=mixed['a'], b=mixed['b']+mixed['c']), rho=1., size=32)
    assert set(groups(path))=={'a/a','a/b','b/a','b/b'}

def test_untouched_photographs_of_the_same_objects(made):
    a,b = on_places(*made, rho=.75, size=32), on_places(*made, rho=.75, size=32, natural=True)
    x,y = files(a),files(b)
    assert set(x)==set(y) and all(x[k]==y[k] for k in x if k.startswith(('test','masks/test')))
    for f in (b/'train').rglob('*.png'):
        img,mask = arr(f), np.asarray(Image.open(b/'masks'/f.relative_to(b)))
        i = int(f.stem)
        assert (img==arr(ImageOps.fit(Image.open(made[0][i]['image']), (32,32)))).all()
        assert ((img[...,0]>img[...,1])==mask).mean()>.98
    df = pd.read_csv(b/'metadata.csv')
    assert df[df.split<2].place.isna().all() and df[df.split==2].place.notna().all()
    assert {k:len(v) for k,v in groups(b).items()}=={k:len(v) for k,v in groups(a).items()}
    with pytest.raises(ValueError, match='unchanged photographs, and their places are unknown'): groups(b, 'valid')

def test_what_cannot_be_pasted(made, tmp_path):
    rows,places = made
    bad = lambda **o: [rows[0]|o,*rows[1:]]
    noise(9, 9).convert('1').save(tmp_path/'m.png')
    for r,p,kwargs,error,text in (
            (rows, places, dict(rho=1.1), ValueError, 'rho=1.1 should be a number from 0 to 1'),
            (rows, places, dict(scale='x'), TypeError, "scale='x' should be a number"),
            (rows, places, dict(size=2), ValueError, 'size=2 should be 8 or more'),
            (rows, places, dict(n_train=40), ValueError, 'There are 40 images, which are too few for 40 in train'),
            ([], places, {}, ValueError, "The objects have no column 'image'"),
            (pd.DataFrame(columns=['image','mask','label']), places, {}, ValueError, 'There are no objects'),
            ([dict(image='x', label='a')], places, {}, ValueError, "The objects have no column 'mask'"),
            (bad(mask=tmp_path/'m.png'), places, {}, ValueError,
             'has 9×9 pixels and its image .* has 50×40: they should have the same size'),
            (bad(label='../x'), places, {}, ValueError, "The label '../x' cannot name a folder"),
            (rows[:20], places, {}, ValueError, "All objects are of one class, 'a'"),
            (rows, [1], {}, TypeError, 'The places should be a dictionary of label -> images, but this is list'),
            (rows, dict(a=places['a']), {}, ValueError, 'The objects have the classes a, b, but there are places for a: give'),
            (rows, dict(a=places['a'], b=places['a']), {}, ValueError, 'is listed twice among the places'),
            (rows, dict(a=places['a'], b=places['b'][:2]), {}, ValueError, "There are 2 images of the place for 'b'")):
        with pytest.raises(error, match=text): on_places(r, p, tmp_path/'bed', **kwargs)
    with pytest.raises(ValueError, match='among the images'): on_places(rows, places, places['a'][0].parent/'bed')
    assert {o.name for o in tmp_path.iterdir()}=={'m.png'}

def test_bad_files_are_counted_whichever_they_are(made, tmp_path):
    rows,places = [dict(o) for o in made[0]], {k:list(v) for k,v in made[1].items()}
    for name in ('i.png','m.png','p.png'): (tmp_path/name).write_bytes(b'no image')
    rows[0]['image'],rows[1]['mask'],places['a'][0] = tmp_path/'i.png',str(tmp_path/'m.png'),tmp_path/'p.png'
    with pytest.warns(ProxyWarning) as told: path = on_places(rows, places, size=32)
    said = [str(o.message) for o in told if issubclass(o.category, ProxyWarning)]
    assert len(said)==2 and said[0].startswith('2 of 40 images are left out') and said[1].startswith('1 of 24 images are left out')
    df = pd.read_csv(path/'metadata.csv')
    assert sorted(df.img_id)==list(range(2, 40)) and not df.place_filename.str.contains('p.png').any()

def test_a_bed_is_whole_or_not_there(made, tmp_path, monkeypatch):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'x').write_text('x')
    with pytest.raises(FileExistsError, match='no file is overwritten'): on_places(*made, tmp_path/'full', size=32)
    pasted,n = room._pasted,[0]
    def breaks(*args):
        n[0] += 1
        if n[0]==9: raise KeyboardInterrupt
        return pasted(*args)
    monkeypatch.setattr(room, '_pasted', breaks)
    with pytest.raises(KeyboardInterrupt): on_places(*made, tmp_path/'bed', size=32)
    assert {o.name for o in tmp_path.iterdir()}=={'full'}
    (tmp_path/'bed').mkdir() # an empty folder is welcome
    assert on_places(*made, tmp_path/'bed', size=32)==tmp_path/'bed' and (tmp_path/'bed'/'metadata.csv').is_file()
    with pytest.raises(FileNotFoundError, match='has no metadata.csv: give a folder that `on_places` made'): groups(tmp_path)
    with pytest.raises(ValueError, match="No part is called 'tst', did you mean 'test'"): groups(tmp_path/'bed', 'tst')

# the benchmark's bed

def test_waterbed(tmp_path):
    spec = importlib.util.spec_from_file_location('waterbed', Path(__file__).parent.parent/'benchmarks'/'waterbed.py')
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    raw = tmp_path/'raw'
    rows = things(tmp_path/'things', n=24)
    names,halves = [],[]
    for i,o in enumerate(rows):
        species = 'California_Gull' if o['label']=='a' else 'Hooded_Oriole'
        for k,src,ext in (('birds',o['image'],'jpg'),('masks',o['mask'],'png')):
            f = raw/k/species/f'{i:04}.{ext}'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.open(src).save(f)
        names.append(f'{i}, {species}/{i:04}.jpg')
        halves.append(f'{i}, {int(i%3>0)}')
    (raw/'cub_images.txt').write_text('\n'.join(names))
    (raw/'cub_train_test_split.txt').write_text('\n'.join(halves))
    for o,shade in (('water',100),('land',20)):
        (raw/o).mkdir()
        for i in range(12): Image.new('RGB', (20,20), (0,0,shade+i)).save(raw/o/f'{i}.jpg')
    path = bench.make(tmp_path, tmp_path/'bed', rho=1., size=32)
    assert {k:len(v) for k,v in groups(path).items()}=={
        'landbird/land':4,'landbird/water':4,'waterbird/land':4,'waterbird/water':4}
    assert {k:len(v) for k,v in groups(path, 'train').items()}=={'landbird/land':13,'waterbird/water':13}
    before = files(path)
    assert bench.make(raw, tmp_path/'bed', rho=.5)==path and files(path)==before

def test_a_label_that_is_missing_names_no_folder(tmp_path):
    imgs = [np.full((20,20,3), 20*i, np.uint8) for i in range(4)]
    with pytest.raises(ValueError, match='1 of 4 images have no label'): planted((imgs, ['a',np.nan,'b','b']), tmp_path/'bed')
