import bench

bench.prefer_installed()

if __name__ == "__main__":
    from bench.command import main

    raise SystemExit(main())
